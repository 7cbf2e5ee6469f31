"""Errors of layers: against a computation by hand, complete, and in every mode."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxq.search.layer_errors import LayerErrors, combine, measure_layer_errors
from passes.formats.weights import encode_layer
from passes.graph.layers import find_layers
from passes.graph.model import Model
from passes.policy import Policy
from passes.quantize import Quantize, activation_scheme, weight_scheme
from passes.smooth import Smooth
from tests.nets import Net, Samples, apply, tensors

ARRAY = np.random.default_rng(3).normal(size=(5, 3, 8, 8)).astype(np.float32)


def _model(*, output: bool = False) -> Model:
    net = Net()
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act="relu", name="c0")
    z = net.add("Add", net.conv(y, 8, 8, act="relu6", name="c1"), y)
    z = net.conv(z, 8, 8, groups=8, name="c2")
    if output:
        return net.model(z)
    z = net.add("Flatten", net.add("GlobalAveragePool", z))
    return net.model(net.add("Gemm", z, net.weight(8, 10), net.weight(10), name="head"))


def _policy(model: Model, weights: str, activations: str) -> Policy:
    return Policy.uniform(find_layers(model), weight_scheme(weights), activation_scheme(activations))


def _measure(model: Model, weights: str, activations: str, *, batch: int = 2) -> list[LayerErrors]:
    policy = _policy(model, weights, activations)
    quantized = apply(Quantize.of(policy), model, {"x": ARRAY}).model
    return measure_layer_errors(model, quantized, policy, Samples("x", ARRAY), batch=batch)


@pytest.mark.parametrize("activations", ["uint8", "uint4", "uint16", "uint8:dynamic", "float"])
@pytest.mark.parametrize("output", [False, True])
def test_every_layer_is_measured(activations: str, output: bool) -> None:
    model = _model(output=output)
    errors = _measure(model, "int8:channel", activations)
    assert [e.layer for e in errors] == [layer.name for layer in find_layers(model)]
    assert all(e.qdq > 0 and e.xmodel > 0 for e in errors)
    assert all(0 <= e.score <= 1 for e in errors)
    if activations == "uint4":
        fine = _measure(model, "int8:channel", "uint8")
        assert all(a.qdq > 4 * b.qdq for a, b in zip(errors, fine, strict=True))


def test_against_a_computation_by_hand() -> None:
    model = _model()
    policy = _policy(model, "int8:channel", "uint8")
    quantized = apply(Quantize.of(policy), model, {"x": ARRAY}).model
    found = {e.layer: e for e in measure_layer_errors(model, quantized, policy, Samples("x", ARRAY), batch=5)}
    name = next(node.output[0] for node in model.proto.graph.node if node.op_type == "Clip")
    inputs = {"x": ARRAY}
    reference = tensors(model, [name], inputs)[name].astype(np.float64)
    held = tensors(quantized, [name, f"{name}_dequantized"], inputs)
    before, after = held[name].astype(np.float64), held[f"{name}_dequantized"]
    assert found["c1"].qdq == pytest.approx(np.linalg.norm(before - after) / np.linalg.norm(before), rel=0.02)
    assert found["c1"].xmodel == pytest.approx(
        np.linalg.norm(reference - after) / np.linalg.norm(reference), rel=0.02
    )


def test_weights_only_takes_the_error_of_the_weights() -> None:
    model = _model()
    found = _measure(model, "int4:channel", "float")
    layers = find_layers(model)
    held = {t.name: t for t in model.proto.graph.initializer}
    for layer, error in zip(layers, found, strict=True):
        weight = numpy_helper.to_array(held[layer.weight])
        decoded = encode_layer(layer, weight, weight_scheme("int4:channel")).decoded
        assert error.qdq == pytest.approx(np.linalg.norm(weight - decoded) / np.linalg.norm(weight), rel=1e-5)


def test_batches_do_not_matter_and_progress_is_told() -> None:
    model = _model()
    seen: list[int] = []
    one = _measure(model, "int8:channel", "uint8", batch=1)
    policy = _policy(model, "int8:channel", "uint8")
    quantized = apply(Quantize.of(policy), model, {"x": ARRAY}).model
    data = Samples("x", ARRAY)
    all_at_once = measure_layer_errors(model, quantized, policy, data, batch=5, progress=seen.append)
    assert seen == [5]
    for left, right in zip(one, all_at_once, strict=True):
        assert left.xmodel == pytest.approx(right.xmodel, rel=0.02)


@pytest.mark.parametrize("site", ["output", "input"])
def test_smoothed_layers_are_measured(site: str) -> None:
    model = Smooth(site=site, absorb="never")(_model()).model  # type: ignore[arg-type]
    errors = _measure(model, "int8", "uint8")
    assert [e.layer for e in errors] == ["c0", "c1", "c2", "head"]
    assert all(e.qdq > 0 for e in errors)


def test_combined_score() -> None:
    errors = [
        LayerErrors("a", "Conv", 1.0, 5.0),
        LayerErrors("b", "Conv", 3.0, 5.0),
        LayerErrors("c", "Conv", 2.0, 5.0),
    ]
    assert [e.score for e in combine(errors)] == [0.0, 0.5, 0.25]
    assert combine([]) == []
