"""Layers: what counts as one, and what is said of it."""

from __future__ import annotations

import onnx
import pytest

from passes.graph.layers import find_layers, macs
from passes.graph.model import Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def parsed(body: str) -> Model:
    return Model(onnx.parser.parse_model(HEAD + body))


def test_each_kind() -> None:
    model = parsed(
        """g (float[N,4,5,5] x, float[2,3] z) => (float[N,6,5,5] y, float[2,2] q, float[4,3] r)
<float[4,1,1,1] dw = {1,2,3,4},
 float[4,3,1,1] up = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2,3] gw = {1,2,3,4,5,6},
 float[4,2] left = {1,2,3,4,5,6,7,8}> {
  [dw] a = Conv <group = 4> (x, dw)
  [up] y = ConvTranspose <group = 2> (a, up)
  [gemm] q = Gemm <transB = 1> (z, gw)
  [left] r = MatMul (left, z)
}"""
    )
    found = {layer.name: layer for layer in find_layers(model)}
    assert list(found) == ["dw", "up", "gemm", "left"]
    assert found["dw"].depthwise
    assert [layer.depth for layer in found.values()] == [0, 1, 2, 3]
    assert [layer.channel_axis for layer in found.values()] == [0, 1, 0, 0]
    assert [layer.out_channels for layer in found.values()] == [4, 6, 2, 4]
    assert [layer.weights for layer in found.values()] == [4, 12, 6, 8]
    assert found["up"].groups == 2


@pytest.mark.parametrize(
    "body",
    [
        "g (float[2,2] x, float[2,2] w) => (float[2,2] y) { y = MatMul (x, w) }",
        "g (float[2,2] x) => (float[2] y) <float[2] w = {1, 2}> { y = MatMul (x, w) }",
        "g () => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (w, w) }",
        "g (int32[2,2] x) => (int32[2,2] y) <int32[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }",
        "g (float[2] x) => (float[2] y) { y = Relu (x) }",
    ],
    ids=["no constant weight", "a vector", "both constant", "integers", "no weight"],
)
def test_what_is_no_layer(body: str) -> None:
    assert find_layers(parsed(body)) == []


def test_a_weight_from_a_constant_node_counts() -> None:
    model = parsed(
        "g (float[N,2] x) => (float[N,2] y) "
        "{ w = Constant <value = float[2,2] {1, 2, 3, 4}> () y = MatMul (x, w) }"
    )
    assert [layer.weight for layer in find_layers(model)] == ["w"]


def test_layers_in_subgraphs() -> None:
    model = parsed(
        "g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = If (c) <"
        "then_branch = t () => (float[2,2] o) { o = MatMul (x, w) }, "
        "else_branch = e () => (float[2,2] o) { [named] o = MatMul (x, w) }> }"
    )
    found = find_layers(model)
    assert sorted(layer.name for layer in found) == ["If_0/then_branch/MatMul_0", "named"]
    assert all(layer.in_subgraph for layer in found)


def test_multiply_accumulates() -> None:
    model = parsed(
        """g (float[N,4,5,5] x) => (float[N,2,3,3] y) <float[2,2,3,3] w, float[4,1,1,1] dw = {1,2,3,4}> {
  [dw] a = Conv <group = 4> (x, dw)
  [conv] y = Conv <group = 2> (a, w)
}"""
    )
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2, 2, 3, 3], [1.0] * 36)
    model.proto.graph.initializer.append(weight)
    assert macs(model) == {"dw": 4 * 25, "conv": 2 * 9 * 2 * 9}
