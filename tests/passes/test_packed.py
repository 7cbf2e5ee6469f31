"""Weights as bit streams: what every road to their values gives, what a file weighs, what is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.evaluation import load_session
from passes.core.base import Context
from passes.core.errors import InvalidModelError, PolicyError, UnsupportedModelError
from passes.decode import Decode, decode_weights, has_packed_weights
from passes.formats.weights import encode_weight
from passes.graph.layers import find_layers
from passes.graph.model import Model, check, serialize
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize
from runtime_ops.gse import gse_bits
from runtime_ops.kernels import decode_gse_native
from runtime_ops.library import isas, native_available, register
from tests.nets import Net, feeds, run

Array = npt.NDArray[Any]
KINDS = ("conv", "depthwise", "gemm", "matmul")
OTHERS = ("gemm_plain", "matmul_left", "matmul_rank3", "conv_transpose", "odd")
SCHEMES = [
    "gse6",
    "gse3:block8",
    "gse8:paper",
    "int3:channel",
    "int5:block8:asym",
    "uint6:asym",
    "int7:tensor",
    "tcq2",
    "tcq5",
]


def network(kind: str, **options: Any) -> Model:
    """One layer of that kind; sizes are such that groups are ragged and rows need padding now and then."""
    net = Net(**options)
    if kind in ("gemm", "gemm_plain"):
        x = net.input("x", ["N", 45])
        weight = net.weight(10, 45) if kind == "gemm" else net.weight(45, 10)
        return net.model(net.add("Gemm", x, weight, net.weight(10), transB=int(kind == "gemm")))
    if kind.startswith("matmul"):
        if kind == "matmul_left":
            return net.model(net.add("MatMul", net.weight(5, 33), net.input("x", ["N", 33, 4])))
        shape = (2, 33, 12) if kind == "matmul_rank3" else (96, 12)
        x = net.input("x", ["N", 2, 3, 33] if kind == "matmul_rank3" else ["N", 3, 96])
        return net.model(net.add("MatMul", x, net.weight(*shape)))
    x = net.input("x", ["N", 12, 7, 7])
    if kind == "conv_transpose":
        return net.model(net.add("ConvTranspose", x, net.weight(12, 6, 3, 3)))
    if kind == "odd":
        return net.model(net.conv(x, 12, 5, 1))
    return net.model(
        net.conv(x, 12, 12 if kind == "depthwise" else 16, groups=12 if kind == "depthwise" else 1)
    )


def weight_only(scheme: str, **options: Any) -> Quantize:
    return Quantize(weights=scheme, activations="float", **options)


def with_weight(model: Model, shape: tuple[int, ...]) -> Model:
    """The model with its layer's weight, of that shape, as one more output `w`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    node = next(n for n in proto.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"))
    index = 0 if node.op_type == "MatMul" and node.input[0] != "x" else 1
    proto.graph.node.append(helper.make_node("Identity", [node.input[index]], ["w"]))
    proto.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, shape))
    return model.with_proto(proto)


def stock(model: Model, options: ort.SessionOptions | None = None) -> Any:
    options = options or ort.SessionOptions()
    # Without it, sums of uint8 x int8 products saturate on CPUs without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])


def attributes(model: Model) -> dict[str, Any]:
    node = next(node for node in model.proto.graph.node if node.domain == "ai.onnxq")
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_road_gives_the_same_bits(bits: int, size: int, kind: str) -> None:
    """numpy, the function in stock ONNX Runtime and in the reference evaluator, the C++ kernel on each
    instruction set and as a custom operator, and the loader."""
    model = network(kind)
    layer = find_layers(model)[0]
    array = next(numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name == layer.weight)
    wanted = encode_weight(array, Scheme.parse(f"gse{bits}:block{size}"), layer.channel_axis).decoded
    made = with_weight(weight_only(f"gse{bits}:block{size}")(model).model, wanted.shape)
    check(made)
    feed = feeds(made)
    reference: Any = ReferenceEvaluator(made.proto)
    sessions = [stock(made), reference, load_session(made)]
    if native_available():
        options = ort.SessionOptions()
        register(options)
        sessions.append(stock(made, options))
        held = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}
        node = next(n for n in made.proto.graph.node if n.domain == "ai.onnxq")
        given = attributes(made)
        rows = np.moveaxis(wanted, layer.channel_axis, 0)
        for isa in isas():
            got = decode_gse_native(
                held[node.input[0]],
                held[node.input[1]],
                *(given[k] for k in ("bits", "group_size", "exponent_base", "shape")),
                isa=isa,
            )
            np.testing.assert_array_equal(got[: len(rows)], rows)
    for session in sessions:
        np.testing.assert_array_equal(session.run(["w"], feed)[0], wanted)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_orientation_and_scheme(kind: str, scheme: str) -> None:
    model = network(kind)
    result = weight_only(scheme)(model)
    assert result.modified
    assert not weight_only(scheme)(result.model).modified, "not idempotent"
    assert not find_layers(result.model)
    layer = find_layers(model)[0]
    array = next(numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name == layer.weight)
    encoded = encode_weight(array, Scheme.parse(scheme), layer.channel_axis, half=scheme[:3] != "gse")
    made, feed = with_weight(result.model, array.shape), feeds(model)
    for session in (stock(made), load_session(made)):
        np.testing.assert_array_equal(session.run(["w"], feed)[0], encoded.decoded)
    plain = Decode()(result.model)
    assert plain.modified
    assert not has_packed_weights(plain.model.proto)
    assert not plain.model.proto.functions
    assert [o.domain for o in plain.model.proto.opset_import] == [""]
    assert not Decode()(plain.model).modified
    np.testing.assert_array_equal(run(plain.model, feed)[0], load_session(result.model).run(None, feed)[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_file_is_that_small(bits: int) -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", ["N", 256, 4, 4]), 256, 256, 3))
    made = weight_only(f"gse{bits}")(model).model
    streams = gse_bits(256, 256 * 9, bits, 32) / 8
    assert streams < len(serialize(made)) < streams + 1024 + 12_000  # bias; function, tables, names


def test_opset_11_is_upgraded_and_told() -> None:
    context = Context()
    made = weight_only("gse5")(network("conv", opset=11), context).model
    assert made.opset() == 14
    assert made.proto.functions[0].opset_import[0].version == 14
    assert any("opset 11 upgraded to 14" in note.reason for note in context.notes)


def test_a_later_upgrade_keeps_the_streams() -> None:
    net = Net()
    x = net.conv(net.input("x", ["N", 8, 6, 6]), 8, 8, name="first")
    model = net.model(net.conv(x, 8, 8, name="second"))
    once = Quantize.of(Policy({"first": LayerPolicy(Scheme.parse("gse5"))}))(model).model
    twice = Quantize.of(Policy({"second": LayerPolicy(Scheme.parse("int4:block8"))}))(once).model
    assert twice.opset() == 21
    assert sum(node.domain == "ai.onnxq" for node in twice.proto.graph.node) == 1
    assert [f.opset_import[0].version for f in twice.proto.functions] == [21]
    stocked, loaded = run(twice, feeds(model))[0], load_session(twice).run(None, feeds(model))[0]
    np.testing.assert_allclose(stocked, loaded, rtol=1e-4, atol=1e-5)  # int4 is folded in one of them only


def test_functions_and_tables_stand_once() -> None:
    net = Net()
    x = net.input("x", ["N", 16, 6, 6])
    for _ in range(3):
        x = net.conv(x, 16, 16)
    made = weight_only("gse4")(net.model(x)).model
    assert [f.name for f in made.proto.functions] == ["GSEDequantizeLinear"]
    names = [t.name for t in made.proto.graph.initializer]
    assert len(names) == len(set(names))
    assert sum(name.startswith("onnxq_unpack") for name in names) == 2  # of mantissas and of exponents


def test_shared_weight_is_encoded_for_each_reader() -> None:
    net = Net()
    x, weight = net.input("x", ["N", 16]), net.weight(16, 16)
    model = net.model(net.add("Gemm", net.add("Gemm", x, weight), weight))
    made = weight_only("gse4")(model).model
    assert len(find_layers(made)) == 0
    assert run(made, feeds(model))[0].shape == run(model, feeds(model))[0].shape


def test_float16_weights() -> None:
    model = network("gemm", dtype=np.float16)
    made = weight_only("gse6")(model).model
    check(made)
    outputs = [stock(made).run(None, feeds(model))[0], load_session(made).run(None, feeds(model))[0]]
    assert outputs[0].dtype == np.float16
    np.testing.assert_array_equal(*outputs)


def test_standard_writes_only_what_onnx_has() -> None:
    model = network("conv")
    for scheme, kind, opset in (("gse8", "INT8", 21), ("gse4", "INT4", 21), ("gse6", "INT8", 21)):
        made = weight_only(scheme, standard=True)(model)
        assert not made.model.proto.functions
        assert made.model.opset() == opset
        codes = [t for t in made.model.proto.graph.initializer if t.name.endswith("_quantized")]
        assert [t.data_type for t in codes] == [getattr(onnx.TensorProto, kind)]
        assert any("stored in 8 bits" in note.reason for note in made.notes) == (scheme == "gse6")
        same = weight_only(scheme)(model).model
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        left = stock(made.model, options).run(None, feeds(model))[0]
        np.testing.assert_array_equal(left, load_session(same).run(None, feeds(model))[0])


def test_integer_kernels_keep_their_types() -> None:
    """With integer activations 6-bit codes stay in INT8, which the kernels read, and that is told."""
    context = Context(ranges=lambda _, wanted: {name: (-1.0, 2.0) for name, _ in wanted})
    result = Quantize(weights="int6:channel", activations="uint8")(network("conv"), context)
    assert not has_packed_weights(result.model.proto)
    assert any("stored in 8 bits" in note.reason for note in result.notes)


def test_a_trellis_stands_beside_integer_activations() -> None:
    """Its weights are float for the kernels, and its bias stays float."""
    context = Context(ranges=lambda _, wanted: {name: (-1.0, 2.0) for name, _ in wanted})
    made = Quantize(weights="tcq4", activations="uint8")(network("conv"), context).model
    check(made)
    assert [f.name for f in made.proto.functions] == ["TCQDequantizeLinear"]
    assert "QuantizeLinear" in {node.op_type for node in made.proto.graph.node}
    left, right = (session.run(None, feeds(made))[0] for session in (stock(made), load_session(made)))
    np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_trellis_that_cannot_be() -> None:
    with pytest.raises(PolicyError, match="no form in ONNX's own types; drop standard"):
        weight_only("tcq3", standard=True)(network("conv"))
    with pytest.raises(PolicyError, match="holds weights, no activations"):
        Quantize(weights="tcq3", activations="tcq4")(network("conv"))


@pytest.mark.parametrize(("size", "error"), [(1e-6, 0.2), (1e-4, 0.06), (1e4, 0.06)])
def test_a_trellis_holds_small_weights_and_rows_of_zeros(size: float, error: float) -> None:
    array = (np.random.default_rng(0).standard_normal((6, 64)) * size).astype(np.float32)
    array[2] = 0
    decoded = encode_weight(array, Scheme.parse("tcq5"), 0).decoded
    assert (decoded[2] == 0).all()
    assert np.linalg.norm(decoded - array) < error * np.linalg.norm(array)


def test_loss_of_the_exponent_window_is_told() -> None:
    net = Net()
    array = net.rng.standard_normal((16, 32)).astype(np.float32)
    array[3] *= np.float32(2.0**-50)
    x = net.input("x", ["N", 32])
    model = net.model(net.add("Gemm", x, net.constant(array), transB=1, name="fc"))
    notes = weight_only("gse6")(model).notes
    assert any(note.node == "fc" and "1 group(s) have exponents below" in note.reason for note in notes)


def test_weights_in_a_branch() -> None:
    """Both branches hold a layer; their streams are decoded where they stand."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        weight = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
        node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], name=name)
        out = helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [out], [numpy_helper.from_array(weight, f"{name}_w")])

    net = Net()
    net.input("x", ["N", 8])
    flag = net.input("flag", [], onnx.TensorProto.BOOL)
    y = net.add("If", flag, then_branch=branch("then", 1), else_branch=branch("other", 2))
    model = net.model(y)
    made = weight_only("gse5")(model).model
    check(made)
    assert len(made.proto.functions) == 1
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    for value in (True, False):
        feed = {"x": x, "flag": np.asarray(value)}
        left, right = stock(made).run(None, feed)[0], load_session(made).run(None, feed)[0]
        np.testing.assert_array_equal(left, right)
        assert np.abs(left - stock(model).run(None, feed)[0]).max() < 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bits", 9, "malformed"),
        ("group_size", 0, "malformed"),
        ("exponent_base", 500, "malformed"),
        ("shape", [4096, 4096], "malformed"),
        ("bits", None, "attribute 'bits' is missing"),
    ],
)
def test_malformed_streams_name_the_node(name: str, value: Any, words: str) -> None:
    made = weight_only("gse4")(network("conv")).model
    proto = onnx.ModelProto()
    proto.CopyFrom(made.proto)
    node = next(n for n in proto.graph.node if n.domain == "ai.onnxq")
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept + ([helper.make_attribute(name, value)] if value is not None else []))
    with pytest.raises(InvalidModelError, match=words) as caught:
        decode_weights(made.with_proto(proto))
    assert node.name in str(caught.value)


def test_streams_that_are_no_constants_stay() -> None:
    made = weight_only("gse4")(network("conv")).model
    proto = onnx.ModelProto()
    proto.CopyFrom(made.proto)
    node = next(n for n in proto.graph.node if n.domain == "ai.onnxq")
    packed = next(t for t in proto.graph.initializer if t.name == node.input[0])
    proto.graph.input.append(helper.make_tensor_value_info(packed.name, packed.data_type, packed.dims))
    feed = {**feeds(made), packed.name: numpy_helper.to_array(packed)}
    proto.graph.initializer.remove(packed)
    model = made.with_proto(proto)
    result, arrays = decode_weights(model)
    assert not arrays
    assert len(result.proto.functions) == 1
    wanted = stock(made).run(None, feeds(made))[0]
    np.testing.assert_allclose(stock(model).run(None, feed)[0], wanted, rtol=1e-4, atol=1e-5)


def test_nan_names_the_weight() -> None:
    net = Net()
    bad = net.constant(np.full((4, 8), np.nan, np.float32), "w")
    model = net.model(net.add("Gemm", net.input("x", ["N", 8]), bad, transB=1, name="fc"))
    with pytest.raises(UnsupportedModelError, match="weight 'w' of fc holds NaN or Inf"):
        weight_only("gse4")(model)
