"""Activations in GSE: what the layer reads is what the numpy reference makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.evaluation import load_session
from passes.graph.model import Model, check
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize
from runtime_ops.gse import quantize_groups
from tests.nets import Net, feeds, run


def simulate(model: Model, activations: str, weights: str = "float") -> Model:
    made = Quantize(weights=weights, activations=activations)(model).model
    check(made)
    return made


@pytest.mark.parametrize("opset", [14, 17, 21])
@pytest.mark.parametrize("scheme", ["gse8", "gse4:block8", "gse6:block16:paper"])
def test_conv_reads_groups_of_channels(scheme: str, opset: int) -> None:
    net = Net(opset=opset)
    model = net.model(net.conv(net.input("x", ["N", 12, 5, 5]), 12, 4))
    feed, parsed = feeds(model), Scheme.parse(scheme)
    held = quantize_groups(feed["x"], parsed.bits, parsed.block_size, 1, parsed.encoder)
    np.testing.assert_array_equal(run(simulate(model, scheme), feed)[0], run(model, {"x": held})[0])


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_reads_its_last_axis(transposed: int) -> None:
    net = Net()
    weight = net.weight(4, 20) if transposed else net.weight(20, 4)
    model = net.model(net.add("Gemm", net.input("x", ["N", 20]), weight, transB=transposed))
    feed = feeds(model)
    held = quantize_groups(feed["x"], 5, 8, -1)
    np.testing.assert_array_equal(run(simulate(model, "gse5:block8"), feed)[0], run(model, {"x": held})[0])


def test_readers_of_one_tensor_share_the_node() -> None:
    net = Net()
    x = net.input("x", ["N", 8, 5, 5])
    model = net.model(net.add("Add", net.conv(x, 8, 8), net.conv(x, 8, 8)))
    made = simulate(model, "gse6", "gse4")
    assert sum(node.op_type == "GSEQuantizeDequantize" for node in made.proto.graph.node) == 1
    assert sorted(f.name for f in made.proto.functions) == ["GSEDequantizeLinear", "GSEQuantizeDequantize"]
    np.testing.assert_array_equal(load_session(made).run(None, feeds(model))[0], run(made, feeds(model))[0])


def test_channels_elsewhere_are_refused_with_a_note() -> None:
    net = Net()
    model = net.model(net.add("MatMul", net.weight(5, 12), net.input("x", ["N", 12, 3]), name="left"))
    result = Quantize(weights="gse4", activations="gse6")(model)
    assert any(note.node == "left" and "not on the last axis" in note.reason for note in result.notes)
    assert all(node.op_type != "GSEQuantizeDequantize" for node in result.model.proto.graph.node)


def test_integer_and_simulated_layers_mix() -> None:
    net = Net()
    x = net.conv(net.input("x", ["N", 8, 6, 6]), 8, 8, name="first", act="relu")
    model = net.model(net.conv(x, 8, 8, name="second"))
    policy = Policy(
        {
            "first": LayerPolicy(Scheme.parse("gse4"), Scheme.parse("gse8")),
            "second": LayerPolicy(Scheme.parse("int6:channel")),
        }
    )
    result = Quantize.of(policy)(model)
    assert sum("simulated in float" in note.reason for note in result.notes) == 1
    ops = sorted(node.op_type for node in result.model.proto.graph.node if node.domain == "ai.onnxq")
    assert ops == ["GSEDequantizeLinear", "GSEQuantizeDequantize", "PackedDequantizeLinear"]
