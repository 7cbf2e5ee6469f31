"""Layers: the weighted nodes that can be quantized, wherever they stand (subgraphs too).

A layer is a Conv, ConvTranspose, Gemm or MatMul whose weight is constant, and not empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from passes.graph.boundary import import_graph
from passes.graph.editing import is_constant, subgraphs, values_type
from passes.graph.light import without_values
from passes.graph.model import Model, is_large

__all__ = ["LAYER_OPS", "Layer", "find_layers", "graph_layers", "macs", "weight_index"]

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """One weighted node.

    name: the node's name (with the path of its subgraph before it).
    weight: name of the weight tensor; weight_shape: its dims as stored.
    channel_axis: axis of the weight that runs over output channels.
    groups: of the convolution, 1 otherwise. depth: position among the layers, in graph order.
    """

    name: str
    op: str
    weight: str
    weight_shape: tuple[int, ...]
    channel_axis: int
    groups: int
    depth: int
    in_subgraph: bool = False

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)

    @property
    def out_channels(self) -> int:
        per_group = self.weight_shape[self.channel_axis]
        return per_group * self.groups if self.op == "ConvTranspose" else per_group

    @property
    def depthwise(self) -> bool:
        """A convolution in which each input channel has filters of its own."""
        return self.op == "Conv" and self.groups > 1 and self.weight_shape[1] == 1


def weight_index(node: gs.Node) -> int | None:
    """Index of the node's constant weight input, or None when the node is no layer.

    A MatMul may hold its weight on either side; 1 wins where both are constant.
    """
    if node.op not in LAYER_OPS or node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 2:
        return None
    candidates = (1, 0) if node.op == "MatMul" else (1,)
    for index in candidates:
        tensor = node.inputs[index]
        if not is_constant(tensor) or is_constant(node.inputs[1 - index]):
            continue
        shape = _shape(tensor)
        if (
            str(values_type(tensor)) in ("float32", "float16", "float64")
            and len(shape) >= 2
            and 0 not in shape
        ):
            return index
    return None


def _shape(tensor: gs.Tensor) -> tuple[int, ...]:
    held = tensor if isinstance(tensor, gs.Constant) else tensor.inputs[0].attrs["value"]
    return tuple(int(dim) for dim in held.shape)


def _channel_axis(node: gs.Node, index: int, rank: int) -> int:
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return rank - 1 if index == 1 else rank - 2


def graph_layers(graph: gs.Graph) -> list[tuple[Layer, gs.Node, gs.Graph]]:
    """Every layer with its node and the graph it stands in, in graph order."""
    found: list[tuple[Layer, gs.Node, gs.Graph]] = []
    for current, path in subgraphs(graph):
        for node in current.nodes:
            index = weight_index(node)
            if index is None:
                continue
            tensor = node.inputs[index]
            shape = _shape(tensor)
            layer = Layer(
                name=node.name,
                op=node.op,
                weight=tensor.name,
                weight_shape=shape,
                channel_axis=_channel_axis(node, index, len(shape)),
                groups=int(node.attrs.get("group", 1)) if node.op.startswith("Conv") else 1,
                depth=len(found),
                in_subgraph=bool(path),
            )
            found.append((layer, node, current))
    return found


def find_layers(model: Model) -> list[Layer]:
    """The model's layers in graph order. Raises GraphError for a graph that cannot be opened."""
    return [layer for layer, _, _ in graph_layers(import_graph(model))]


def _output_shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """Shapes known by shape inference, symbolic dimensions counted as 1 (per sample)."""
    proto = model.proto
    if is_large(proto):
        proto = without_values(proto).proto
    proto = onnx.shape_inference.infer_shapes(proto)
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
    return shapes


def macs(model: Model) -> dict[str, int]:
    """Layer name -> multiply-accumulates per sample; layers of unknown output shape are left out."""
    shapes = _output_shapes(model)
    counts: dict[str, int] = {}
    for layer, node, _ in graph_layers(import_graph(model)):
        shape = shapes.get(node.outputs[0].name)
        if not shape:
            continue
        per_output = layer.weights // max(layer.out_channels, 1)
        if layer.op == "ConvTranspose":
            shape = shapes.get(node.inputs[0].name, ())
            per_output = layer.weights // layer.weight_shape[0]
        counts[layer.name] = math.prod(shape[1:]) * per_output
    return counts
