"""Ranges by the error of the readers' outputs, against the outputs themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq.calibration import CalibratedRanges
from onnxq.calibration.collect import collect
from onnxq.calibration.observers import mse
from onnxq.calibration.output_error import candidates
from passes.graph.model import Model
from tests.nets import Net, Samples, tensors


def network() -> Model:
    """A depthwise and a dense reader of one tensor, a MatMul, and a tensor that no layer reads."""
    net = Net(seed=1)
    a = net.conv(net.input("x", ["N", 3, 6, 6]), 3, 8, act="relu", name="stem")
    b = net.conv(a, 8, 8, groups=8, stride=2, name="depthwise")
    c = net.conv(a, 8, 4, k=1, name="dense")
    d = net.add("Flatten", net.add("Concat", *(net.add("GlobalAveragePool", t) for t in (b, c)), axis=1))
    return net.model(net.add("MatMul", d, net.weight(12, 5), name="head"))


def data() -> Samples:
    """Few, large values in the channels that the readers hardly look at."""
    x = np.random.default_rng(0).normal(size=(10, 3, 6, 6)).astype(np.float32)
    x[:, :, 0, 0] *= 8
    return Samples("x", x)


def fake_quantized(x: Any, low: float, high: float, bits: int) -> Any:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    return ((np.clip(np.rint(x / step) + zero, 0, 2**bits - 1) - zero) * step).astype(np.float32)


def after(model: Model, tensor: str, value: Any, outputs: list[str]) -> list[Any]:
    """Outputs of nodes that read `tensor`, given its value."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = "given"
    proto.graph.initializer.append(numpy_helper.from_array(value, "given"))
    found = tensors(Model(proto), outputs, {"x": data().array})
    return [found[name] for name in outputs]


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_the_range_of_least_output_error_is_taken(bits: int) -> None:
    model, samples = network(), data()
    names = {node.name: node.output[0] for node in model.proto.graph.node}
    shared = next(node.input[0] for node in model.proto.graph.node if node.name == "depthwise")
    outputs = [names["depthwise"], names["dense"]]
    ranges = CalibratedRanges(samples, "output", threads=1)(model.proto, [(shared, bits), ("x", bits)])
    stats = collect(model.proto, [shared], samples, threads=1)[shared]
    value = tensors(model, [shared], {"x": samples.array})[shared]
    wanted = after(model, shared, value, outputs)

    def error(span: tuple[float, float]) -> float:
        found = after(model, shared, fake_quantized(value, *span, bits), outputs)
        return sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))

    tried = candidates(stats, bits)
    errors = [error(span) for span in tried]
    assert error(ranges[shared]) == pytest.approx(min(errors), rel=1e-3)
    assert min(errors) <= error(mse(stats, bits)) < 1.001 * max(errors)
    if bits < 8:
        assert ranges[shared] != tried[0]


def test_tensors_without_a_reader_are_ranged_by_mse() -> None:
    model, samples = network(), data()
    output = model.proto.graph.output[0].name
    ranges = CalibratedRanges(samples, "output", threads=1)(model.proto, [(output, 8)])
    stats = collect(model.proto, [output], samples, threads=1)[output]
    assert ranges[output] == mse(stats, 8)


def test_matrix_products_count_too() -> None:
    model, samples = network(), data()
    tensor = next(node.input[0] for node in model.proto.graph.node if node.name == "head")
    low, high = CalibratedRanges(samples, "output", threads=1)(model.proto, [(tensor, 3)])[tensor]
    value = tensors(model, [tensor], {"x": samples.array})[tensor]
    weight = next(
        numpy_helper.to_array(item)
        for item in model.proto.graph.initializer
        if item.name == next(n for n in model.proto.graph.node if n.name == "head").input[1]
    )

    def error(span: tuple[float, float]) -> float:
        return float(np.square((fake_quantized(value, *span, 3) - value) @ weight).sum())

    stats = collect(model.proto, [tensor], samples, threads=1)[tensor]
    assert error((low, high)) == pytest.approx(min(map(error, candidates(stats, 3))), rel=1e-3)
