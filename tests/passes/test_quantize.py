"""Quantize: biases, formats, policies, dynamic mode, subgraphs, float types, what is refused and told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.core.base import Context
from passes.core.errors import PolicyError, UnsupportedModelError
from passes.core.recipe import parse_recipe
from passes.formats.integer import shape_integers
from passes.graph.boundary import import_graph
from passes.graph.layers import find_layers, graph_layers
from passes.graph.model import Model, check
from passes.placement.activations import activation_range
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize, activation_scheme, weight_scheme
from tests.nets import Net, apply, feeds, optimized_ops, run, sqnr


def _two(**options: bool) -> Model:
    net = Net(**options)
    x = net.input("x", ["N", 4, 8, 8])
    return net.model(net.conv(net.conv(x, 4, 8, act="relu", name="one"), 8, 6, name="two"))


def _ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


# --- biases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", ["int8:channel", "int8", "uint8:channel", "int16:channel", "int4:channel"]
)
def test_dead_channel_keeps_its_bias(weights: str) -> None:
    """Weights of 1e-10 with a bias of 5: the bias leaves int32 at the weights' own scale (PR #22020)."""
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    w = net.rng.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32)
    w[1], w[2] = 1e-10, -1e-10
    y = net.add(
        "Conv", x, net.constant(w), net.constant(np.asarray([0.1, 5, -5, 0], np.float32)), pads=[1] * 4
    )
    model = net.model(net.conv(y, 4, 4))
    result = apply(Quantize(weights=weights), model)
    assert sqnr(run(model)[0], run(result.model)[0]) > (12 if weights.startswith("int4") else 25)
    if ":channel" in weights:
        assert any("int32 bias range" in note.reason for note in result.notes)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (1, 5)])
@pytest.mark.parametrize(
    "attributes", [{}, {"alpha": 2.0}, {"beta": 0.5}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1}]
)
@pytest.mark.parametrize("activations", ["uint8", "uint8:dynamic", "float"])
def test_gemm_biases_and_factors(
    shape: tuple[int, ...], attributes: dict[str, Any], activations: str, tmp_path: Path
) -> None:
    net = Net()
    x = net.input("x", [6, "N"] if "transA" in attributes else ["N", 6])
    bias = net.constant(net.rng.normal(size=shape).astype(np.float32))
    model = net.model(net.add("Gemm", x, net.weight(6, 5), bias, **attributes))
    result = apply(Quantize(activations=activations), model)
    assert sqnr(run(model)[0], run(result.model)[0]) > 35
    ops = optimized_ops(result.model, tmp_path)
    if activations == "uint8":
        assert ops == {"QuantizeLinear": 1, "QGemm": 1}
    elif activations == "uint8:dynamic" and "transA" not in attributes:
        assert "DynamicQuantizeMatMul" in ops


def test_runtime_bias_stays_float() -> None:
    for activations in ("uint8", "uint8:dynamic"):
        net = Net()
        x = net.input("x", ["N", 4, 8, 8])
        bias = net.input("b", [6])
        model = net.model(net.add("Conv", x, net.weight(6, 4, 3, 3), bias))
        result = apply(Quantize(activations=activations), model).model
        assert sqnr(run(model)[0], run(result)[0]) > 30


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activations", "least"),
    [("uint2", -2), ("uint3", 6), ("uint4", 12), ("uint5", 18), ("uint6", 24), ("uint7", 29), ("uint16", 40)],
)
def test_activation_bits(activations: str, least: float) -> None:
    model = _two()
    result = apply(Quantize(weights="int16:channel", activations=activations), model).model
    assert sqnr(run(model)[0], run(result)[0]) > least


@pytest.mark.parametrize(
    "text", ["uint8", "int8", "uint8:sym", "int8:sym", "uint4", "int4:sym", "uint16", "int16:sym"]
)
def test_ranges_hold_zero_and_both_ends(text: str) -> None:
    scheme = activation_scheme(text)
    for low, high in ((-1.5, 3.0), (0.0, 6.0), (2.0, 3.0), (-3.0, -1.0), (0.0, 0.0), (-1e-40, 1e-40)):
        held = activation_range(low, high, scheme)
        step, zero = float(held.scale), int(held.zero_point)
        assert held.format.lowest <= zero <= held.format.highest
        assert step >= np.finfo(np.float32).tiny
        slack = step * 1.01
        assert (held.format.lowest - zero) * step <= min(low, 0) + slack
        assert (held.format.highest - zero) * step >= max(high, 0) - slack


def test_wider_container_is_told_once() -> None:
    result = apply(Quantize(weights="int6:channel", activations="float", standard=True), _two())
    assert [note.reason for note in result.notes if "stored in 8 bits" in note.reason] == [
        "6-bit weights are stored in 8 bits each: ONNX has no narrower type"
    ]
    assert not apply(Quantize(weights="int6:channel", activations="float"), _two()).notes
    assert not apply(Quantize(activations="float"), _two()).notes


def test_weights_only_has_no_pair_on_activations() -> None:
    result = Quantize(activations="float")(_two()).model
    assert "QuantizeLinear" not in _ops(result)
    assert _ops(result).count("DequantizeLinear") == 2


# --- policies ---------------------------------------------------------------------------------------------


def _policy(model: Model, *choices: tuple[str, str]) -> Policy:
    names = [layer.name for layer in find_layers(model)]
    chosen = zip(names, choices, strict=True)
    return Policy({name: LayerPolicy(Scheme.parse(w), Scheme.parse(a)) for name, (w, a) in chosen})


@pytest.mark.parametrize(
    "choices",
    [
        [("int4:channel", "uint8"), ("int8:channel", "uint8")],
        [("int8:channel", "uint4"), ("int8:channel", "uint8")],
        [("int8:channel", "uint16"), ("int8:channel", "uint8")],
        [("int8:channel", "uint8:dynamic"), ("int8:channel", "uint8")],
        [("float", "uint8"), ("int4:block8", "float")],
        [("int8", "float"), ("float", "float")],
    ],
)
def test_mixed_policies(choices: Sequence[tuple[str, str]]) -> None:
    model = _two()
    step = Quantize.of(_policy(model, *choices))
    result = apply(step, model)
    check(result.model)
    assert sqnr(run(model)[0], run(result.model)[0]) > 10
    assert Policy.from_json(json.loads(result.model.metadata["onnxq.policy"])).layers.keys() == {"one", "two"}
    again = apply(step, result.model)
    assert not again.modified


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ('{"layers": ', "not JSON"),
        ('{"layers": {"nobody": {"weights": "int8"}}}', "lacks"),
        ('{"layers": {"one": {"weights": "int8:dynamic"}}}', "ahead of time"),
        ('{"layers": {"one": {"weights": "int8", "activations": "uint8:channel"}}}', "one scale per tensor"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_bad_policies_are_one_sentence(policy: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Quantize(policy=policy)(_two(), Context())


def test_scheme_texts() -> None:
    with pytest.raises(PolicyError, match="ahead of time"):
        weight_scheme("int8:dynamic")
    with pytest.raises(PolicyError, match="one scale per tensor"):
        activation_scheme("uint8:channel")
    assert not activation_scheme("int8").symmetric
    assert activation_scheme("int8:sym").symmetric


def test_static_without_data_is_refused() -> None:
    with pytest.raises(PolicyError, match="calibration data"):
        Quantize()(_two(), Context())


def test_nothing_to_quantize() -> None:
    net = Net()
    x = net.input("x", ["N", 4])
    with pytest.raises(UnsupportedModelError, match="no quantizable layer"):
        Quantize(activations="float")(net.model(net.add("Relu", x)))
    result = Quantize(weights="float", activations="float")(_two())
    assert not result.modified
    assert [note.kind for note in result.notes] == ["skipped"]


# --- dynamic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8:channel", "int8", "int4:channel"])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "nobias", "gemm", "matmul", "matmul_batched"])
def test_dynamic(kind: str, weights: str) -> None:
    net = Net()
    if kind in ("conv", "depthwise", "nobias"):
        x = net.input("x", ["N", 4, 8, 8])
        y = net.conv(x, 4, 4, groups=4 if kind == "depthwise" else 1, bias=kind != "nobias", stride=2)
    elif kind == "gemm":
        y = net.add("Gemm", net.input("x", ["N", 6]), net.weight(5, 6), net.weight(5), transB=1)
    else:
        x = net.input("x", ["N", 3, 6] if kind == "matmul_batched" else ["N", 6])
        y = net.add("MatMul", x, net.weight(6, 5))
    model = net.model(y)
    result = Quantize(weights=weights, activations="uint8:dynamic")(model)
    check(result.model)
    assert {"ConvInteger", "MatMulInteger"} & set(_ops(result.model))
    assert sqnr(run(model)[0], run(result.model)[0]) > (12 if weights.startswith("int4") else 32)
    assert not Quantize(weights=weights, activations="uint8:dynamic")(result.model).modified


def test_a_trellis_has_no_integer_kernel() -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", ["N", 4, 8, 8]), 4, 4))
    result = Quantize(weights="tcq4", activations="uint8:dynamic")(model)
    assert [note.kind for note in result.notes] == ["refused"]
    assert "not tcq4" in result.notes[0].reason
    assert sqnr(run(model)[0], run(result.model)[0]) > 15


def test_dynamic_refusals_are_told_and_get_weights_only() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = net.add("ConvTranspose", x, net.weight(4, 4, 3, 3), name="up")
    model = net.model(net.conv(y, 4, 4, name="plain"))
    result = Quantize(activations="uint8:dynamic")(model)
    assert [(note.kind, note.node) for note in result.notes] == [("refused", "up")]
    assert "ConvInteger" in _ops(result.model)
    assert "DequantizeLinear" in _ops(result.model)
    assert sqnr(run(model)[0], run(result.model)[0]) > 30


def test_dynamic_input_is_quantized_once_for_all_readers() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    model = net.model(net.add("Add", net.conv(x, 4, 4), net.conv(x, 4, 4)))
    result = Quantize(activations="uint8:dynamic")(model).model
    assert _ops(result).count("DynamicQuantizeLinear") == 1


def test_dynamic_on_silence() -> None:
    """All-zero input: DynamicQuantizeLinear has no range to divide by."""
    net = Net()
    model = net.model(net.conv(net.input("x", ["N", 4, 8, 8]), 4, 4))
    result = Quantize(activations="uint8:dynamic")(model).model
    silence = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    np.testing.assert_allclose(run(result, silence)[0], run(model, silence)[0], atol=1e-5)


# --- subgraphs, float types, shared tensors ---------------------------------------------------------------


def _branches() -> Model:
    """A Conv before an If whose branches hold a Conv each."""
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    flag = net.input("flag", [], onnx.TensorProto.BOOL)
    y = net.conv(x, 4, 4, act="relu", name="outer")
    w = net.weight(4, 4, 3, 3, name="shared_weight")
    inner = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Conv", [y, w], [f"z_{side}"], f"inner_{side}", pads=[1] * 4)],
            side,
            [],
            [onnx.helper.make_tensor_value_info(f"z_{side}", 1, ["N", 4, 8, 8])],
        )
        for side in ("then", "else")
    ]
    z = net.add("If", flag, then_branch=inner[0], else_branch=inner[1])
    return net.model(net.conv(z, 4, 4, name="last"))


def test_layers_in_subgraphs_get_weights_only() -> None:
    model = _branches()
    result = apply(Quantize(), model)
    told = [note.node for note in result.notes if "subgraph" in note.reason]
    assert len(told) == 2
    graphs = [
        attribute.g
        for node in result.model.proto.graph.node
        for attribute in node.attribute
        if attribute.g.node
    ]
    assert len(graphs) == 2
    # Both branches read one weight: it is decoded once, outside of them.
    assert [[node.op_type for node in graph.node] for graph in graphs] == [["Conv"], ["Conv"]]
    weight = next(node.input[1] for node in graphs[0].node)
    assert [node.op_type for node in result.model.proto.graph.node if weight in node.output] == [
        "DequantizeLinear"
    ]
    for flag in (True, False):
        inputs = feeds(model) | {"flag": np.asarray(flag)}
        assert sqnr(run(model, inputs)[0], run(result.model, inputs)[0]) > 28


def test_float16_gets_weights_only_and_says_so() -> None:
    net = Net(dtype=np.float16)
    x = net.input("x", ["N", 4, 8, 8])
    model = net.model(net.conv(net.conv(x, 4, 8, act="relu"), 8, 6))
    for activations in ("uint8", "uint8:dynamic", "float"):
        result = apply(Quantize(activations=activations), model)
        assert len([n for n in result.notes if "float16" in n.reason]) == (0 if activations == "float" else 2)
        assert result.model.opset() >= 19
        found = run(result.model)[0]
        assert found.dtype == np.float16
        assert sqnr(run(model)[0], found) > 30


def test_float64_is_refused() -> None:
    net = Net(dtype=np.float64)
    x = net.input("x", ["N", 4])
    model = net.model(net.add("MatMul", x, net.weight(4, 3)))
    with pytest.raises(UnsupportedModelError, match=r"0 of 1 layer\(s\) can be quantized .*float64"):
        apply(Quantize(), model)


def test_a_shared_weight_stays_for_its_float_reader() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    w = net.weight(4, 4, 3, 3, name="w")
    y = net.add("Conv", x, w, pads=[1] * 4, name="one")
    model = net.model(net.add("Conv", y, w, pads=[1] * 4, name="two"))
    result = apply(Quantize(exclude=("two",)), model).model
    kept = [layer for layer, _, _ in graph_layers(import_graph(result))]
    assert [(layer.name, layer.weight) for layer in kept] == [("two", "w")]
    names = [t.name for t in result.proto.graph.initializer]
    assert len(names) == len(set(names))
    assert sqnr(run(model)[0], run(result)[0]) > 28


def test_weight_that_is_a_default_of_an_input() -> None:
    """Below IR 4 weights are listed among the inputs."""
    model = _two()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    listed = Model(proto)
    result = apply(Quantize(), listed, feeds(model)).model
    assert sqnr(run(model)[0], run(result, feeds(model))[0]) > 28


def test_placement_inputs_quantizes_what_layers_read_and_nothing_else() -> None:
    net = Net()
    y = net.conv(net.input("x", (1, 3, 6, 6)), 3, 4, act="relu", name="first")
    a = net.conv(y, 4, 4, name="left")
    b = net.conv(y, 4, 4, name="right")
    model = net.model(net.add("Add", a, b, name="sum"))
    step = parse_recipe("quantize{weights=int3:tensor activations=uint4 placement=inputs}")
    assert str(step) == str(parse_recipe(str(step)))
    result = apply(step, model).model
    read = {node.input[0] for node in result.proto.graph.node if node.op_type == "QuantizeLinear"}
    # The input of the first layer, and the Relu's result once for both readers; narrow ones are clipped
    # first.
    assert len(read) == 2
    ops = [node.op_type for node in result.proto.graph.node]
    # No integer kernel reads the weights: they keep their bits, and biases stay float.
    assert ops.count("PackedDequantizeLinear") == 3
    assert not [t for t in result.proto.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert sqnr(run(model)[0], run(result)[0]) > 5


def test_weights_that_are_codes_already_are_stored_as_they_are() -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", (1, 3, 6, 6)), 3, 4, bias=False, name="conv"))
    layer = find_layers(model)[0]
    codes = np.random.default_rng(0).integers(-4, 4, (4, 27)).astype(np.float32)
    array = np.zeros(layer.weight_shape, np.float32)
    scheme = Scheme.parse("int3")
    steps = np.full((4, 1), 0.25, np.float32)
    encoded = shape_integers(array, 0, scheme, codes, steps, np.zeros((4, 1), np.int8))
    policy = Policy({"conv": LayerPolicy(scheme)})
    result = Quantize.of(policy)(model, Context(encoded={"conv": encoded})).model
    plain = onnx.ModelProto()
    plain.CopyFrom(model.proto)
    wanted = (codes * 0.25).reshape(layer.weight_shape)
    plain.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(wanted, layer.weight))
    assert np.array_equal(run(result)[0], run(Model(plain))[0])
