"""Weight formats behind their interface: text, numbers, bytes and files, and the door for new ones."""

from __future__ import annotations

import itertools
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import passes.formats
from onnxq.calibration import CalibratedRanges
from onnxq.data import input_specs, random_dataset
from onnxq.inspection import layer_facts
from onnxq.rounding import DataRounder
from passes import Context, Decode, Model, Policy, Quantize, find_layers
from passes.core.errors import PolicyError
from passes.formats import FORMATS, Scheme, format_of
from passes.formats.base import RowTask
from passes.formats.bitstream import BitStream
from passes.formats.form import Geometry
from passes.formats.half import Float16
from passes.formats.mx import decode_mx
from passes.formats.scheme import GRAMMARS
from passes.graph.model import check, serialize
from passes.placement.plan import Plan, Target
from passes.policy import LayerPolicy
from passes.quantize import activation_scheme, weight_scheme
from passes.rounding.second_order import damped, objective, snapped, upper_factor
from tests.nets import Net, feeds

Array = npt.NDArray[Any]
NEW = ("float16", "mxfp4", "mxint8")
EVERY = ("int4:channel", "int5:block8", "uint3:asym", "gse4", "tcq3", *NEW)
KINDS = ("conv", "depthwise", "conv_transpose", "gemm", "gemm_plain", "matmul", "matmul_left", "odd")


def network(kind: str) -> Model:
    """One layer, with ragged blocks, and an odd number of weights now and then."""
    net = Net()
    if kind.startswith("gemm"):
        x = net.input("x", ["N", 45])
        weight = net.weight(10, 45) if kind == "gemm" else net.weight(45, 10)
        return net.model(net.add("Gemm", x, weight, net.weight(10), transB=int(kind == "gemm")))
    if kind == "matmul_left":
        return net.model(net.add("MatMul", net.weight(5, 33), net.input("x", ["N", 33, 4])))
    if kind == "matmul":
        return net.model(net.add("MatMul", net.input("x", ["N", 3, 96]), net.weight(96, 12)))
    x = net.input("x", ["N", 12, 7, 7])
    if kind == "conv_transpose":
        return net.model(net.add("ConvTranspose", x, net.weight(12, 6, 3, 3)))
    if kind == "odd":
        return net.model(net.conv(net.conv(x, 12, 5), 5, 3, 3))
    groups = 12 if kind == "depthwise" else 1
    return net.model(net.conv(x, 12, 12 if groups > 1 else 7, groups=groups))


def weights_only(model: Model, text: str, **options: Any) -> Model:
    return Quantize(weights=text, activations="float", **options)(model, Context()).model


def outputs(model: Model, optimised: bool = True) -> list[Array]:
    """Of stock ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    return [np.asarray(item) for item in session.run(None, feeds(model))]


def with_reference(model: Model, text: str) -> Model:
    """The float model in which each weight is what the numpy reference decodes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for layer in find_layers(model):
        for tensor in proto.graph.initializer:
            if tensor.name == layer.weight:
                array = numpy_helper.to_array(tensor)
                scheme = Scheme.parse(text)
                form = format_of(scheme).form(scheme)
                encoded = format_of(scheme).encode(array, scheme, layer.channel_axis, half=form.half)
                tensor.CopyFrom(numpy_helper.from_array(encoded.decoded, tensor.name))
    return model.with_proto(proto)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", NEW)
def test_a_file_computes_with_what_the_numpy_reference_decodes(kind: str, text: str) -> None:
    model = network(kind)
    made = weights_only(model, text)
    check(made)
    wanted = outputs(with_reference(model, text), optimised=False)
    for found in (outputs(made), outputs(made, optimised=False), outputs(Decode()(made, Context()).model)):
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(outputs(made, optimised=False)[0], wanted[0])


@pytest.mark.parametrize("text", NEW)
def test_the_evaluator_of_onnx_agrees(text: str) -> None:
    model = network("odd")
    made = weights_only(model, text)
    evaluator: Any = ReferenceEvaluator(made.proto)
    found = np.asarray(evaluator.run(None, feeds(model))[0])
    np.testing.assert_allclose(found, outputs(made)[0], atol=1e-5)


@pytest.mark.parametrize("text", NEW)
def test_the_inspector_reads_the_scheme_from_the_nodes(text: str) -> None:
    facts = layer_facts(weights_only(network("odd"), text))
    assert [layer.weights for layer in facts] == [text, text]
    assert {layer.stored_bits for layer in facts} == {Scheme.parse(text).bits}
    assert not any(layer.padded for layer in facts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", EVERY)
def test_a_form_knows_its_bytes_exactly(kind: str, text: str) -> None:
    model, scheme = network(kind), Scheme.parse(text)
    made = weights_only(model, text)
    before = {tensor.name for tensor in model.proto.graph.initializer}
    own = ("packed", "exponents", "scale", "zero_point", "quantized", "float16")
    stored = sum(
        len(tensor.raw_data)
        for tensor in made.proto.graph.initializer
        if tensor.name not in before
        and tensor.name.rpartition("_")[2] in {name.rpartition("_")[2] for name in own}
    )
    layers = find_layers(model)
    kept = {layer.name for layer in find_layers(made)}  # those that would not shrink
    form = format_of(scheme).form(scheme)
    wanted = sum(
        form.stored_bytes(
            Geometry.of(layer.weights, layer.weight_shape[layer.channel_axis], scheme), scheme, 4
        )
        for layer in layers
        if layer.name not in kept
    )
    assert stored == wanted


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_says_what_it_is(name: str) -> None:
    made = FORMATS[name]
    for text in made.example.split(", "):
        scheme = Scheme.parse(text)
        assert Scheme.parse(str(scheme)) == scheme
        assert scheme.format == name
        assert made.forms(scheme)
        array = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
        encoded = made.encode(array, scheme, 0)
        assert encoded.decoded.shape == array.shape
        assert np.square(encoded.decoded - array).mean() < 0.1 * np.square(array).mean()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("float8", "not in float8"),
        ("float16:block32", "float16 has no scales"),
        ("mxfp6", "mxfp has 4 bits, not 6"),
        ("mxint8:block16", "blocks of 32"),
        ("umxint8", "blocks of 32"),
        ("mxfp4:paper", "only GSE"),
    ],
)
def test_wrong_schemes(text: str, word: str) -> None:
    with pytest.raises(PolicyError, match=word):
        Scheme.parse(text)


@pytest.mark.parametrize("text", [*NEW, "tcq3"])
def test_weights_that_hold_no_activations(text: str) -> None:
    with pytest.raises(PolicyError, match="no activations"):
        activation_scheme(text)
    policy = {"layers": {"a": {"weights": "float", "activations": text}}}
    model = Net()
    x = model.input("x", ["N", 45])
    held = model.model(model.add("Gemm", x, model.weight(45, 10), name="a"))
    with pytest.raises(PolicyError, match="layer 'a': activations are"):
        Quantize.of(Policy.from_json(policy))(held, Context())


# The elements of MX, by an implementation that is not ours.


@drawn(st.lists(st.floats(-7, 7, width=32), min_size=1, max_size=64))
def test_e2m1_is_rounded_as_ml_dtypes_rounds(values: list[float]) -> None:
    levels = np.asarray([0, 1, 2, 3, 4, 6, 8, 12], np.float64)
    found = snapped(np.asarray(values, np.float64) * 2, levels) / 2
    wanted = np.asarray(values, np.float32).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(found, wanted)


def test_ties_of_e2m1_go_to_even() -> None:
    levels = np.asarray([0, 1, 2, 3, 4, 6, 8, 12], np.float64)
    ties = np.asarray([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0])
    np.testing.assert_array_equal(snapped(-2 * ties, levels) / -2, [0, 1, 1, 2, 2, 4, 4, 6])


@pytest.mark.parametrize("text", ["mxfp4", "mxint8"])
def test_the_bytes_of_mx_are_those_of_the_specification(text: str) -> None:
    """E8M0 and E2M1 bytes as ml_dtypes reads them, int8 codes over 64."""
    made = weights_only(network("gemm"), text)
    held = {
        tensor.name.rpartition("_")[2]: numpy_helper.to_array(tensor)
        for tensor in made.proto.graph.initializer
    }
    scales = held["exponents"].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert scales.shape == (10, 2)
    if text == "mxfp4":
        pairs = np.stack([held["packed"] & 15, held["packed"] >> 4], axis=1).reshape(-1)
        elements = pairs.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    else:
        elements = held["packed"].view(np.int8).astype(np.float32) / 64
    wanted = elements.reshape(10, 45) * np.repeat(scales, 32, axis=1)[:, :45]
    bits = 4 if text == "mxfp4" else 8
    np.testing.assert_array_equal(decode_mx(held["packed"], held["exponents"], bits, 32, (10, 45)), wanted)
    weight = numpy_helper.to_array(network("gemm").proto.graph.initializer[0])
    encoded = format_of(Scheme.parse(text)).encode(weight, Scheme.parse(text), 0)
    np.testing.assert_array_equal(encoded.decoded, wanted)


@pytest.mark.parametrize("text", ["mxfp4", "mxint8"])
@pytest.mark.parametrize("power", [-140, -126, -60, 0, 60, 125])
def test_mx_at_the_ends_of_float32(text: str, power: int) -> None:
    rng = np.random.default_rng(power + 200)
    array = np.ldexp(rng.uniform(-1, 1, (3, 64)), power).astype(np.float32)
    array[1, :32] = 0
    encoded = format_of(Scheme.parse(text)).encode(array, Scheme.parse(text), 0)
    assert np.isfinite(encoded.decoded).all()
    assert not encoded.decoded[1, :32].any()
    if power > -100:
        error = np.abs(encoded.decoded - array).max() / np.abs(array).max()
        assert error < (0.17 if text == "mxfp4" else 0.01)


@pytest.mark.parametrize("text", ["mxfp4", "mxint8", "gse4", "int3:block8"])
def test_rounding_by_data_lowers_the_objective(text: str) -> None:
    rng = np.random.default_rng(0)
    scheme, weight = Scheme.parse(text), rng.normal(size=(1, 12, 70))
    inputs = rng.normal(size=(200, 70)) @ rng.normal(size=(70, 70))
    hessian = damped((inputs.T @ inputs)[np.newaxis] / 200, 0.01)
    task = RowTask(weight[0].astype(np.float32), 0, scheme, weight)
    metric = hessian, upper_factor(hessian)
    kind = format_of(scheme)
    plain, found = (kind.rounded(task, given, 4, None).decoded[np.newaxis] for given in (None, metric))
    worse, better = (float(objective(weight - item, hessian).sum()) for item in (plain, found))
    assert better < 0.75 * worse
    # What was chosen is in the format: encoding it again changes nothing.
    again = kind.encode(found[0], scheme, 0).decoded
    if text.startswith("mx"):
        np.testing.assert_array_equal(again, found[0])


def test_float16_is_half_the_bytes_of_the_same_numbers() -> None:
    model = network("conv")
    array = numpy_helper.to_array(model.proto.graph.initializer[0])
    made = weights_only(model, "float16")
    (stored,) = [t for t in made.proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    np.testing.assert_array_equal(numpy_helper.to_array(stored), array.astype(np.float16))
    assert not made.proto.functions


def test_float16_tells_what_it_cannot_hold() -> None:
    model = network("conv")
    tensor = model.proto.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = 1e6
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    context = Context()
    Quantize(weights="float16", activations="float")(model, context)
    assert any("1 weight(s) are beyond the range of float16" in note.reason for note in context.notes)


def test_float16_weights_between_pairs_stay_float(tmp_path: Path) -> None:
    """ONNX Runtime quantizes float weights between DequantizeLinear and QuantizeLinear by itself."""
    net = Net()
    x = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, name="a")
    model = net.model(net.conv(net.conv(x, 8, 8, name="b"), 8, 8, name="c"))
    ranges = CalibratedRanges(random_dataset(input_specs(model.proto), 4, 0), "minmax")
    choices = {name: LayerPolicy(weight_scheme("int8:channel"), activation_scheme("uint8")) for name in "ac"}
    for weights in ("float", "float16"):
        middle = LayerPolicy(Scheme.parse(weights), activation_scheme("uint8"))
        context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors))
        made = Quantize.of(Policy({**choices, "b": middle}))(model, context).model
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(serialize(made), options, providers=["CPUExecutionProvider"])
        ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        assert (ops.count("QLinearConv"), ops.count("Conv")) == (2, 1), weights


# One plan a layer.

ACTIVATIONS = ("float", "uint8", "uint8:dynamic", "gse8:block8")
WEIGHTS = ("int8:channel", "int4:block8", "int3:channel", "uint6:asym", "gse4", "tcq3", *NEW)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("placement", ["fused", "inputs"])
def test_the_plan_is_what_stands_in_the_file(placement: str, rounding: str) -> None:
    net = Net()
    x = net.conv(net.input("x", ["N", 8, 6, 6]), 8, 16, name="first", act="relu")
    model = net.model(net.conv(x, 16, 8, name="second"))
    dataset = random_dataset(input_specs(model.proto), 4, 0)
    ranges = CalibratedRanges(dataset, "minmax")
    kinds = WEIGHTS if rounding == "nearest" else ("int8:channel", "int3:channel", "gse4", "mxfp4")
    given = ACTIVATIONS if rounding == "nearest" else ("float", "uint8")
    for weights, activations in itertools.product(kinds, given):
        choice = LayerPolicy(
            weight_scheme(weights),
            activation_scheme(activations) if activations != "float" else LayerPolicy().activations,
        )
        policy = Policy.uniform(["first", "second"], choice.weights, choice.activations)
        context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors), rounder=DataRounder(dataset))
        options: dict[str, Any] = {"rounding": rounding, "placement": placement}
        quantize = Quantize(policy=Quantize.of(policy).policy, **options)
        made = quantize(model, context).model
        check(made)
        assert np.isfinite(outputs(made)[0]).all(), (weights, activations)
        plan = Plan.of(policy, Target(fuses=placement == "fused"))["first"]
        ops = {node.op_type for node in made.proto.graph.node}
        form = plan.form
        assert form is not None
        if "ConvInteger" not in ops:  # dynamic layers have integer operators of their own
            stream = isinstance(form, BitStream)
            assert form.op in ops if isinstance(form, BitStream) else True, (weights, activations)
            assert stream == any(
                node.domain == "ai.onnxq"
                and "Dequantize" in node.op_type
                and "Quantize" not in node.op_type.replace("Dequantize", "")
                for node in made.proto.graph.node
            )
        biases = [t for t in made.proto.graph.initializer if t.data_type == onnx.TensorProto.INT32 and t.dims]
        integer = plan.integer_bias and choice.activations.is_static
        assert bool(biases) == integer, (weights, activations)
        if plan.half:
            types = {t.data_type for t in made.proto.graph.initializer if t.name.endswith("_scale")}
            assert onnx.TensorProto.FLOAT16 in types or weights in ("gse4", "mxfp4", "mxint8")


# The door for formats of others.


class Bits12(Float16):
    """A format of a test's own: float16 with the four lowest bits of the mantissa cleared."""

    name = "half12"
    prefix = "half"
    bits = (12,)
    example = "half12"

    def check(self, scheme: Scheme) -> None:
        if scheme.bits != 12:
            raise PolicyError("half12 has 12 bits")

    def encode(self, array: Array, scheme: Scheme, axis: int, floor: Any = None, half: bool = False) -> Any:
        bits = np.asarray(array, np.float16).view(np.uint16) & np.uint16(0xFFF0)
        return super().encode(bits.view(np.float16).astype(array.dtype), scheme, axis)


def test_a_package_may_bring_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("half12", f"{__name__}:Bits12", "onnxq.formats")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Bits12)
    monkeypatch.setattr(passes.formats, "entry_points", lambda group: [entry])
    monkeypatch.setattr(passes.formats, "FORMATS", dict(FORMATS))
    held = dict(GRAMMARS)
    try:
        passes.formats.register_plugins()
        model = network("conv")
        made = weights_only(model, "half12")
        np.testing.assert_allclose(outputs(made)[0], outputs(model)[0], atol=0.05)
        assert str(Scheme.parse("half12")) == "half12"
    finally:
        GRAMMARS.clear()
        GRAMMARS.update(held)
