"""Weights that several layers read stay one; folding never makes a file larger; scales keep their numbers."""

from __future__ import annotations

import cProfile
import itertools
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq.rounding import DataRounder
from onnxq.session import load_session
from passes.core.base import Context
from passes.core.errors import UnsupportedModelError
from passes.fold_batchnorm import FoldBatchNorm
from passes.formats.sizes import pays
from passes.graph.layers import find_layers
from passes.graph.model import Model
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize
from passes.simplify import Simplify
from passes.smooth import Smooth
from tests.nets import Net, Samples, feeds, run, sqnr

SIZE, LAYERS = 64, 4


def chain(layers: int = LAYERS) -> Model:
    """MatMuls of one weight, one behind the other."""
    net = Net()
    x = net.input("x", ["N", SIZE])
    weight = net.weight(SIZE, SIZE)
    for _ in range(layers):
        x = net.add("Tanh", net.add("MatMul", x, weight))
    return net.model(x)


def stored(model: Model) -> int:
    return sum(len(tensor.raw_data) for tensor in model.proto.graph.initializer)


def context(model: Model) -> Context:
    rng = np.random.default_rng(0)
    data: Any = Samples("x", rng.standard_normal((24, SIZE)).astype(np.float32))
    return Context(
        ranges=lambda _, tensors: {name: (-3.0, 3.0) for name, _bits in tensors},
        rounder=DataRounder(data, threads=1),
    )


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int8:channel", "float"),
        ("int8", "uint8"),
        ("uint8:channel", "uint8"),
        ("int4:block32", "float"),
        ("int3:channel", "float"),
        ("gse6", "float"),
        ("tcq3", "float"),
        ("int8:channel", "uint8:dynamic"),
    ],
)
def test_layers_of_one_weight_share_its_codes(weights: str, activations: str, rounding: Any) -> None:
    one, several = (
        Quantize(weights=weights, activations=activations, rounding=rounding)(model, context(model)).model
        for model in (chain(1), chain())
    )
    # Per further layer: scale and zero point of its activations.
    assert stored(several) - stored(one) < 32 * LAYERS
    weights_read = {
        node.input[1] for node in several.proto.graph.node if node.op_type in ("MatMul", "MatMulInteger")
    }
    assert len(weights_read) == 1
    inputs = feeds(chain())
    assert np.isfinite(run(several, inputs)[0]).all()


def test_eight_shared_bits_run_with_the_option_that_copies_int8_weights() -> None:
    model = chain()
    result = Quantize(weights="int8:channel", activations="uint8")(model, context(model)).model
    # tests.nets.run sets session.x64quantprecision.
    assert sqnr(run(model)[0], run(result)[0]) > 20


def test_different_schemes_of_one_weight_are_told_with_their_bytes() -> None:
    model = chain(2)
    names = [node.name for node in model.proto.graph.node if node.op_type == "MatMul"]
    schemes = [Scheme.parse(text) for text in ("int8:channel", "int4:channel")]
    policy = Policy({name: LayerPolicy(scheme) for name, scheme in zip(names, schemes, strict=True)})
    result = Quantize.of(policy)(model)
    told = [note.reason for note in result.notes if "bytes more than once" in note.reason]
    assert len(told) == 1
    assert "2 layers read this weight, which is stored 2 times" in told[0]


def test_a_weight_of_both_branches_is_stored_once() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[N,64] x) => (float[N,64] y) {
      y = If (c) <then_branch = t () => (float[N,64] a) { a = MatMul (x, w) },
                  else_branch = e () => (float[N,64] b) { r = Relu (x) b = MatMul (r, w) }>
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = Model(proto)
    result = Quantize(weights="int8:channel", activations="float")(model).model
    assert stored(result) < 64 * 64 + 64 * 6
    for flag in (True, False):
        inputs = {"x": weight[:3], "c": np.asarray(flag)}
        assert sqnr(run(model, inputs)[0], run(result, inputs)[0]) > 35


def _with_weight(text: str, *shape: int) -> Model:
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return Model(proto)


FOLDS = {
    "branches": """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[N,64] x) => (float[N,64] y) {
      y = If (c) <then_branch = t () => (float[N,64] a) { u = Transpose (w) a = MatMul (x, u) },
                  else_branch = e () => (float[N,64] b) { v = Transpose (w) b = MatMul (x, v) }>
    }""",
    "tied": """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[N] i) => (float[N,64] y) { e = Gather (w, i) t = Transpose (w) y = MatMul (e, t) }""",
    "generated": """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,64] x) => (float[N,64] y) <int64[1] a = {0}> {
      c = Slice (w, a, o) r = Transpose (c) m = MatMul (r, c) n = Cos (m) y = MatMul (x, n)
    }""".replace("a = {0}>", "a = {0}, int64[1] o = {1}>"),
    "half": """<ir_version: 8, opset_import: ["" : 17]>
    g (float16[N,64] x) => (float16[N,64] y, float16[64,64] z) {
      h = Cast <to = 10> (w) y = MatMul (x, h) d = Cast <to = 1> (h) e = Cast <to = 10> (d) z = Relu (e)
    }""",
}


@pytest.mark.parametrize("case", FOLDS)
def test_folding_never_makes_a_file_larger(case: str) -> None:
    model = _with_weight(FOLDS[case], 64, 64)
    result = FoldBatchNorm()(Simplify()(model).model).model
    assert result.proto.ByteSize() <= model.proto.ByteSize() + 200


def test_a_large_middle_with_a_small_end_is_folded() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,64] x) => (float[N,64] y) {
      t = Transpose (w) m = MatMul (t, w) s = ReduceMean <keepdims = 0> (m) y = Mul (x, s)
    }"""
    model = _with_weight(text, 8, 64)
    result = Simplify()(model).model
    assert [node.op_type for node in result.proto.graph.node] == ["Mul"]
    assert np.allclose(run(model)[0], run(result)[0], rtol=1e-5)


def _siamese(equal: bool) -> Model:
    net = Net()
    weight = net.weight(8, 8, 3, 3)
    ends = []
    scale = net.weight(8)
    for name in ("x", "z"):
        shift = scale if equal else net.weight(8)
        made = net.add("Conv", net.input(name, ["N", 8, 5, 5]), weight, pads=[1] * 4)
        mean, variance = net.constant(np.zeros(8, np.float32)), net.constant(np.ones(8, np.float32))
        ends.append(net.add("BatchNormalization", made, scale, shift, mean, variance))
    return net.model(net.add("Add", *ends))


@pytest.mark.parametrize("equal", [True, False])
def test_batchnorms_behind_a_shared_weight_do_not_copy_it(equal: bool) -> None:
    model = _siamese(equal)
    result = FoldBatchNorm()(model).model
    assert stored(result) <= stored(model)
    left = Counter(node.op_type for node in result.proto.graph.node)
    assert left["BatchNormalization"] == 0
    assert left["Conv"] == (2 if equal else 4)
    assert np.allclose(run(model)[0], run(result)[0], atol=1e-4)


def test_layers_that_share_a_weight_share_the_smoothed_one() -> None:
    net = Net()
    weight = net.weight(4, 4, 1, 1)
    x = net.add("Conv", net.input("x", ["N", 4, 3, 3]), weight)
    model = net.model(net.add("Sigmoid", net.add("Conv", x, weight)))
    result = Smooth(layers=("all",))(model).model
    read = {node.input[1] for node in result.proto.graph.node if node.op_type == "Conv"}
    assert len(read) == 1
    assert np.allclose(run(model)[0], run(result)[0], atol=1e-5)


@pytest.mark.parametrize("factor", [1e8, 1e-9])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    ("scheme", "least"), [("int3:channel", 10), ("int6", 28), ("uint5:block32:asym", 25), ("tcq5", 25)]
)
def test_scales_beyond_float16_are_stored_in_float32(
    factor: float, rounding: Any, scheme: str, least: float, tmp_path: Any
) -> None:
    net = Net()
    weight = np.random.default_rng(0).standard_normal((SIZE, 32)) * factor
    model = net.model(net.add("MatMul", net.input("x", ["N", SIZE]), net.constant(weight.astype(np.float32))))
    made = Quantize(weights=scheme, activations="float", rounding=rounding)(model, context(model)).model
    kinds = {t.data_type for t in made.proto.graph.initializer if t.name.endswith("_scale")}
    assert kinds == {onnx.TensorProto.FLOAT}
    inputs = feeds(model)
    real = run(made, inputs)[0]
    assert sqnr(run(model, inputs)[0], real) > least
    path = tmp_path / "made.onnx"
    path.write_bytes(made.proto.SerializeToString())
    assert np.allclose(load_session(path).run(None, dict(inputs))[0], real, rtol=1e-5)


def test_small_float16_weights_keep_their_values() -> None:
    net = Net(dtype=np.float16)
    weight = (np.random.default_rng(0).standard_normal((SIZE, 32)) * 1e-5).astype(np.float16)
    model = net.model(net.add("MatMul", net.input("x", ["N", SIZE]), net.constant(weight)))
    made = Quantize(weights="int8:channel", activations="float")(model).model
    kinds = [t.data_type for t in made.proto.graph.initializer if t.name.endswith("_scale")]
    assert kinds == [onnx.TensorProto.FLOAT]
    assert sqnr(run(model)[0], run(made)[0]) > 15


@pytest.mark.parametrize("shape", [(1, 4096), (4097, 1), (1, 1)])
@pytest.mark.parametrize(
    "scheme", ["gse6", "int3:channel", "uint5:block32:asym", "tcq3", "int4:block32", "int8:channel"]
)
def test_odd_shapes_are_never_larger_than_float(shape: tuple[int, int], scheme: str) -> None:
    net = Net(opset=21)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = net.model(net.add("MatMul", net.input("x", ["N", shape[0]]), net.constant(weight)))
    item = Quantize(weights=scheme, activations="float")
    if not pays(find_layers(model)[0], Scheme.parse(scheme)):
        with pytest.raises(UnsupportedModelError, match="would take more bytes"):
            item(model)
        return
    # Tables that do not grow with the weight, the trellis' levels among them, are apart.
    assert stored(item(model).model) < weight.nbytes + (6000 if scheme == "tcq3" else 2000)


def _calls(length: int) -> int:
    """How many functions `simplify` calls for a chain of Identity whose every tensor is an output."""
    names = [f"t{index}" for index in range(length + 1)]
    nodes = [onnx.helper.make_node("Relu", ["x"], names[:1])]
    nodes += [onnx.helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]) for name in held]
        for held in (["x"], names[1:])
    )
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = Model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    profile = cProfile.Profile()
    profile.runcall(Simplify(), model)
    return sum(entry.callcount for entry in profile.getstats())


def test_taking_out_noops_is_linear_in_their_number() -> None:
    _calls(10)  # what is done once for all
    assert _calls(800) < 8.5 * _calls(100)
