"""The bridge as a whole: the shipped networks, training mode, weights written back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnxq.training.network import Network
from passes.core.errors import UnsupportedModelError
from passes.graph.layers import find_layers
from passes.graph.model import Model, load
from tests.nets import Net, feeds, run

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def difference(model: Model, network: Network, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """Largest difference from ONNX Runtime over the largest output."""
    wanted = run(model, {network.inputs[0]: x})[0]
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(x)).numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv4_small"])
def test_shipped_network_is_trained_and_written_back(name: str) -> None:
    model = load(MODELS / f"{name}.onnx")
    network = Network(model)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    assert difference(model, network, x) <= 1e-4
    before = network.arrays()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        logits = network.train()(torch.from_numpy(x + np.float32(step)))
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, torch.arange(4)))
        optimizer.step()
    after = network.arrays()
    assert all((before[key] != after[key]).any() for key in before), "something was not trained"
    assert difference(network.written(), network, x) <= 1e-4
    assert {layer.weight for layer in find_layers(model)} <= set(network.weight_names)


def small(momentum: float = 0.75) -> Net:
    net = Net()
    x = net.input("x", ("N", 2, 4, 4))
    y = net.conv(x, 2, 3, bias=False, name="conv")
    values = {"scale": [1, 2, 3], "shift": [0, 1, 2], "mean": [0.5, 0, 1], "var": [1, 2, 4]}
    names = [net.constant(np.asarray(held, np.float32), name) for name, held in values.items()]
    net.add("BatchNormalization", y, *names, name="bn", momentum=momentum)
    return net


def test_batch_normalization_moves_as_onnx_says() -> None:
    """running = running * momentum + batch * (1 - momentum), and inference uses what was stored."""
    network = Network(small().model("bn_out"))
    x = torch.randn(5, 2, 4, 4)
    with torch.no_grad():
        conv = network.eval().tensors(["conv_out"], x)["conv_out"]
        network.train()(x)
    found = network.arrays()
    mean = 0.75 * np.asarray([0.5, 0, 1]) + 0.25 * conv.mean((0, 2, 3)).numpy()
    # torch stores the unbiased variance, as its own BatchNorm does.
    var = 0.75 * np.asarray([1, 2, 4]) + 0.25 * conv.var((0, 2, 3)).numpy()
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-5)
    assert difference(network.written(), network, x.numpy()) <= 1e-5


def test_statistics_are_estimated_over_whole_batches() -> None:
    network = Network(small(0.6).model("bn_out"))
    batches = [torch.randn(5, 2, 4, 4) + shift for shift in range(3)]
    with torch.no_grad():
        outputs = [network.eval().tensors(["conv_out"], x)["conv_out"] for x in batches]
    network.estimate_moved(batches)
    found = network.arrays()
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    np.testing.assert_allclose(found["mean"], mean.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], var.numpy(), rtol=1e-4)
    assert not network.training


def test_dropout_drops_in_training_alone() -> None:
    net = Net()
    net.add("Dropout", net.input("x", (1, 4000)), net.scalar(0.25), name="drop")
    network = Network(net.model("drop_out"))
    x = torch.ones(1, 4000)
    assert torch.equal(network.eval()(x), x)
    kept = network.train()(x)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.2 < float((kept == 0).float().mean()) < 0.3


def test_equal_tensors_are_trained_apart() -> None:
    """The legacy exporter stores equal tensors once: shared plainly, or through Identity."""
    net = Net()
    x = net.input("x", ("N", 4))
    weight = net.weight(4, 4, name="w")
    a = net.add("MatMul", x, weight, name="first")
    b = net.add("MatMul", a, weight, name="second")
    net.add("Identity", weight, name="copy")
    net.add("MatMul", b, "copy_out", name="third")
    model = net.model("third_out")
    network = Network(model)
    assert network.weight_names == ["w", "w_1", "copy_out"]
    x_value = np.ones((2, 4), np.float32)
    assert difference(model, network, x_value) <= 1e-5
    network(torch.from_numpy(x_value)).sum().backward()
    grads = [weight.grad for weight in network.weights]
    assert all(grad is not None for grad in grads)
    assert not torch.equal(grads[0], grads[1])


def test_names_of_unnamed_nodes_are_those_of_policies() -> None:
    net = Net(named=False)
    x = net.input("x", ("N", 3, 4, 4))
    constant = net.add("Constant", value=numpy_helper.from_array(np.asarray(2.0, np.float32)))
    y = net.add("Mul", x, constant)
    model = net.model(net.conv(y, 3, 4))
    names = [layer.name for layer in find_layers(model)]
    assert [layer.name for layer in find_layers(Network(model).model)] == names == ["Conv_2"]


def test_scalars_and_masks_stay() -> None:
    net = Net()
    x = net.input("x", (2, 3))
    y = net.add("Add", x, net.constant(np.asarray([0, -100, 0], np.float32), "mask"))
    y = net.add("Mul", y, net.scalar(3.0))
    y = net.add("Add", y, net.constant(np.asarray([1, 2, 3], np.float32), "bias"))
    assert Network(net.model(y)).weight_names == ["bias"]


def test_gemm_factors_are_folded() -> None:
    net = Net()
    x = net.input("x", ("N", 3))
    y = net.add("Gemm", x, net.weight(3, 2, name="w"), net.weight(2, name="b"), alpha=0.5, beta=3.0)
    model = net.model(y)
    network = Network(model)
    given = feeds(model)
    np.testing.assert_allclose(run(network.written(), given)[0], run(model, given)[0], rtol=1e-5)
    attributes = {a.name: a.f for a in network.model.proto.graph.node[0].attribute}
    assert attributes == {"alpha": 1.0, "beta": 1.0}


def test_a_function_of_the_file_is_inlined() -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["b"])]
    opset = [helper.make_opsetid("", 17)]
    square = helper.make_function("own", "Square", ["a"], ["b"], body, opset)
    node = helper.make_node("Square", ["x"], ["y"], "square", domain="own")
    ends = [helper.make_tensor_value_info(name, 1, [2, 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    proto = helper.make_model(
        graph, functions=[square], opset_imports=[*opset, helper.make_opsetid("own", 1)], ir_version=8
    )
    assert torch.equal(Network(Model(proto, "f.onnx"))(torch.full((2, 3), 3.0)), torch.full((2, 3), 9.0))


def test_shapes_are_computed_once_for_each_shape_of_the_input() -> None:
    net = Net()
    x = net.input("x", ("N", 2, 3))
    first = net.add("Gather", net.add("Shape", x), net.constant(np.asarray([0], np.int64)), axis=0)
    target = net.add("Concat", first, net.constant(np.asarray([-1], np.int64)), axis=0)
    y = net.add("Reshape", x, target)
    network = Network(net.model(net.add("Mul", y, y)))
    plan = network.specialise(torch.zeros(5, 2, 3))
    assert [step.op for step in plan.steps] == ["Reshape", "Mul"]
    assert network(torch.zeros(7, 2, 3)).shape == (7, 6)


def test_unknown_operators_are_named_and_counted() -> None:
    net = Net()
    x = net.input("x", (2, 3, 4, 4))
    y = net.add("Hardmax", x, name="odd")
    y = net.add("Hardmax", y)
    y = net.add("LRN", y, size=3)
    with pytest.raises(UnsupportedModelError, match=r"node 'odd' uses Hardmax.*2 Hardmax, 1 LRN"):
        Network(net.model(y))


def test_a_shape_that_depends_on_data_is_refused() -> None:
    net = Net()
    x = net.input("x", (2, 3))
    target = net.add("Cast", net.add("ReduceMax", x, keepdims=0, axes=[0]), to=7)
    y = net.add("Expand", x, target, name="grow")
    network = Network(net.model(y, infer=False))
    with pytest.raises(UnsupportedModelError, match=r"'grow' \(Expand\).*from data"):
        network(torch.ones(2, 3))


def test_half_precision_and_subgraphs_are_refused() -> None:
    net = Net(dtype=np.float16)
    y = net.add("MatMul", net.input("x", (2, 3)), net.weight(3, 4, name="w"))
    with pytest.raises(UnsupportedModelError, match="'w' is float16"):
        Network(net.model(y))
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "inner", [],
                               [helper.make_tensor_value_info("z", 1, [2])])  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    with pytest.raises(UnsupportedModelError, match="subgraph"):
        Network(Model(proto, "if.onnx"))
