"""Bias correction by what BatchNormalization says, against samples of the distributions that it assumes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from passes import Context, FoldBatchNorm, Model, Quantize, Smooth
from passes.core.errors import PolicyError
from passes.graph.boundary import import_graph
from passes.rounding.analytic import clipped_mean, expected_inputs
from tests.nets import Net, tensors

CHANNELS = 6


def network() -> Model:
    """Conv, BN, ReLU6, depthwise, BN, Conv, BN, Add of two branches, pooling and a Gemm."""
    net = Net(seed=4)
    rng = np.random.default_rng(1)

    def normalised(x: str, channels: int, name: str) -> str:
        given = [
            rng.uniform(0.5, 2, channels),
            rng.normal(0, 1, channels),
            np.zeros(channels),
            np.ones(channels),
        ]
        return net.add(
            "BatchNormalization", x, *(net.constant(a.astype(np.float32)) for a in given), name=name
        )

    x = net.conv(net.input("x", ["N", 3, 8, 8]), 3, CHANNELS, bias=False, name="stem")
    a = normalised(x, CHANNELS, "bn0")
    limits = [net.constant(np.array(v, np.float32)) for v in (0.0, 6.0)]
    b = net.add("Clip", a, *limits)
    c = normalised(net.conv(b, CHANNELS, CHANNELS, groups=CHANNELS, name="depthwise"), CHANNELS, "bn1")
    d = normalised(net.conv(b, CHANNELS, CHANNELS, k=1, name="project"), CHANNELS, "bn2")
    e = net.conv(net.add("Add", c, d, name="sum"), CHANNELS, 4, k=1, name="last")
    pooled = net.add("Flatten", net.add("GlobalAveragePool", normalised(e, 4, "bn3")))
    return net.model(net.add("Gemm", pooled, net.weight(4, 5), name="head"))


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, math.inf), (-1.0, 0.5), (-math.inf, math.inf)])
def test_mean_of_clipped_normals(low: float, high: float) -> None:
    mean, spread = np.array([-3.0, -0.5, 0.0, 2.0, 7.0, 1.5]), np.array([1.0, 2.0, 0.5, 3.0, 1.0, 0.0])
    drawn = np.random.default_rng(0).normal(mean, spread, (400_000, 6))
    np.testing.assert_allclose(
        clipped_mean(mean, spread, low, high), np.clip(drawn, low, high).mean(0), atol=0.02
    )


def test_means_of_the_inputs_of_layers() -> None:
    context = Context()
    folded = FoldBatchNorm()(network(), context).model
    graph = import_graph(folded)
    known = expected_inputs(graph, context.distributions)
    of = {node.name: node.inputs[0].name for node in graph.nodes}
    bn = {
        node.name: [onnx.numpy_helper.to_array(t).astype(np.float64) for t in parameters(node)]
        for node in network().proto.graph.node
        if node.op_type == "BatchNormalization"
    }
    (scale, shift), (_, second), (_, third) = bn["bn0"], bn["bn1"], bn["bn2"]
    wanted = clipped_mean(shift, np.abs(scale), 0.0, 6.0)
    np.testing.assert_allclose(known[of["depthwise"]], wanted)
    np.testing.assert_allclose(known[of["last"]], second + third)
    np.testing.assert_allclose(known[of["head"]], bn["bn3"][1])
    assert of["stem"] not in known


def parameters(node: onnx.NodeProto) -> list[onnx.TensorProto]:
    held = {item.name: item for item in network().proto.graph.initializer}
    return [held[name] for name in node.input[1:3]]


def test_biases_take_up_what_rounding_does_to_the_mean() -> None:
    """bias' - bias = (W - Q) E[x], summed over inputs and taps; the weights are those of nearest."""
    results: dict[str, dict[str, Any]] = {}
    for rounding in ("nearest", "analytic"):
        context = Context()
        recipe = FoldBatchNorm() | Quantize(weights="int3:channel", activations="float", rounding=rounding)
        made = recipe(network(), context).model
        wanted = [name for node in made.proto.graph.node if node.name == "project" for name in node.input[1:]]
        found = tensors(made, wanted[:1], {"x": np.zeros((1, 3, 8, 8), np.float32)})
        held = {item.name: onnx.numpy_helper.to_array(item) for item in made.proto.graph.initializer}
        results[rounding] = {"weight": found[wanted[0]], "bias": held[wanted[1]]}
    context = Context()
    folded = FoldBatchNorm()(network(), context).model
    node = next(node for node in folded.proto.graph.node if node.name == "project")
    held = {item.name: onnx.numpy_helper.to_array(item) for item in folded.proto.graph.initializer}
    mean = expected_inputs(import_graph(folded), context.distributions)[node.input[0]]
    lost = held[node.input[1]][..., 0, 0] - results["analytic"]["weight"][..., 0, 0]
    np.testing.assert_array_equal(results["analytic"]["weight"], results["nearest"]["weight"])
    np.testing.assert_allclose(
        results["analytic"]["bias"] - results["nearest"]["bias"], lost @ mean, rtol=1e-4, atol=1e-6
    )
    assert np.abs(lost @ mean).max() > 0.01


def test_without_statistics_it_is_refused() -> None:
    step = Quantize(weights="int4", activations="float", rounding="analytic")
    with pytest.raises(PolicyError, match="rounding=analytic needs BatchNormalization"):
        step(network(), Context())
    with pytest.raises(PolicyError, match="rescales channels"):
        (FoldBatchNorm() | Smooth(site="output", layers=("op:Conv",)) | step)(network(), Context())
