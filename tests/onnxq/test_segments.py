"""Segments: chained, they give what the whole model gives; equal beginnings have equal digests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.evaluation.segments import Segment, choose_anchors, split
from passes.graph.model import Model, check
from passes.quantize import Quantize
from tests.nets import Net, apply, feeds, run, session


def deep(act: str = "relu", seed: int = 0) -> Model:
    """Residuals, branches, a depthwise block and a classifier."""
    net = Net(seed=seed)
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act=act, name="stem")
    for index in range(3):
        z = net.conv(net.conv(y, 8, 8, act=act, name=f"block{index}a"), 8, 8, name=f"block{index}b")
        y = net.activation(net.add("Add", z, y), act if index else "")
    y = net.add("Concat", net.conv(y, 8, 4, 1, name="left"), net.conv(y, 8, 4, act=act, name="right"), axis=1)
    y = net.conv(y, 8, 8, groups=8, stride=2, act=act, name="depthwise")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.model(net.add("Gemm", y, net.weight(8, 10), net.weight(10), name="head"))


def chained(segments: list[Segment], inputs: dict[str, Any]) -> Any:
    value = None
    for segment in segments:
        feed = inputs if value is None else {segment.input: value}
        value = session(Model(segment.proto)).run([segment.output], feed)[0]
    return value


VARIANTS: dict[str, Callable[[Model], Model]] = {
    "float": lambda model: model,
    "w8a8": lambda model: apply(Quantize(), model).model,
    "excluded": lambda model: apply(Quantize(exclude=("first", "block1a", "right")), model).model,
    "a4": lambda model: apply(Quantize(activations="uint4"), model).model,
    "weights": lambda model: apply(Quantize(weights="int4:block8", activations="float"), model).model,
    "dynamic": lambda model: apply(Quantize(activations="uint8:dynamic"), model).model,
}


@pytest.mark.parametrize("act", ["relu", "relu6", ""])
@pytest.mark.parametrize("variant", VARIANTS)
def test_chained_segments_are_the_model(variant: str, act: str) -> None:
    model = deep(act)
    anchors = choose_anchors(model)
    assert len(anchors) >= 4
    candidate = VARIANTS[variant](model)
    segments = split(candidate, anchors)
    assert len(segments) >= 4 or variant == "a4"
    for segment in segments:
        check(Model(segment.proto))
    inputs = feeds(model)
    whole = run(candidate, inputs)[0]
    # Integer kernels round alike; float ones differ with the layouts that ONNX Runtime chooses.
    np.testing.assert_allclose(
        chained(segments, inputs), whole, rtol=1e-3, atol=2e-2 * float(np.abs(whole).max())
    )
    if variant == "float":
        np.testing.assert_allclose(chained(segments, inputs), whole, rtol=1e-4, atol=1e-5)


def test_equal_beginnings_have_equal_digests() -> None:
    model = deep()
    anchors = choose_anchors(model)
    one, other = (
        [s.digest for s in split(apply(Quantize(exclude=exclude), model).model, anchors)]
        for exclude in (("head",), ("head", "depthwise"))
    )
    same = next(index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert same >= len(one) // 2
    again = [s.digest for s in split(apply(Quantize(exclude=("head",)), deep()).model, anchors)]
    assert again == one


def test_most_anchors() -> None:
    assert len(choose_anchors(deep(), most=2)) <= 2


def _one(model: Model) -> Segment:
    (segment,) = split(model, choose_anchors(model))
    return segment


def test_several_outputs_and_inputs_are_one_segment() -> None:
    net = Net()
    x, z = net.input("x", ["N", 4, 8, 8]), net.input("z", ["N", 4, 8, 8])
    y = net.conv(x, 4, 4)
    two_outputs = net.model(y, net.conv(net.add("Add", y, z), 4, 4))
    segment = _one(two_outputs)
    inputs = feeds(two_outputs)
    found = session(Model(segment.proto)).run([segment.output], inputs)[0]
    np.testing.assert_array_equal(found, run(two_outputs, inputs)[0])


def test_subgraphs_are_one_segment_with_their_weights() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = net.conv(x, 4, 4)
    weight = net.weight(4, 4, 3, 3)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", [y, weight], ["inner"], pads=[1] * 4)],
        "inner",
        [],
        [onnx.helper.make_tensor_value_info("inner", 1, ["N", 4, 8, 8])],
    )
    flag = net.constant(np.asarray(True))
    model = net.model(net.conv(net.add("If", flag, then_branch=inner, else_branch=inner), 4, 4))
    inputs = feeds(model)
    segment = _one(model)
    found = session(Model(segment.proto)).run([segment.output], inputs)[0]
    np.testing.assert_array_equal(found, run(model, inputs)[0])


def test_quantizers_without_zero_point_and_dead_ends() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = net.conv(x, 4, 4)
    scale = net.scalar(0.02)
    y = net.add("DequantizeLinear", net.add("QuantizeLinear", y, scale), scale)
    out = net.add("Sin", net.conv(y, 4, 4))
    net.add("Sin", net.add("Sin", out))  # nobody reads it, and it stands behind the output
    model = net.model(out)
    anchors: dict[str, tuple[int, ...]] = {
        "conv0_out": (4, 8, 8),
        "sin5_out": (4, 8, 8),
        "sin6_out": (4, 8, 8),
    }
    segments = split(model, anchors)
    assert len(segments) == 2
    inputs = feeds(model)
    np.testing.assert_allclose(chained(segments, inputs), run(model, inputs)[0], atol=1e-5)


def test_metadata_do_not_change_the_digest() -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", ["N", 4, 8, 8]), 4, 4))
    assert split(model, {})[0].digest == split(model.with_metadata(policy="{}"), {})[0].digest
