"""Models whose inner tensors outgrow memory: a slip in a scale makes an Upsample give billions of numbers.

ONNX Runtime cannot be stopped within one operator, so such a run is not begun.
"""

from __future__ import annotations

import math

import onnx

from onnxq.proof.feeds import Feed
from passes.graph.checking import light_copy
from passes.graph.model import Model, every_graph

__all__ = ["outgrows"]

# Numbers in one tensor of a run on made-up input.
_MOST_NUMBERS = 2**28
_GROWING = {"ConstantOfShape", "Expand", "Pad", "Range", "Resize", "Tile", "Upsample"}


def outgrows(model: Model, feed: Feed) -> bool:
    """Whether shape inference finds a tensor too large to try, with inputs of the feed's sizes."""
    if all(node.op_type not in _GROWING for graph in every_graph(model.proto.graph) for node in graph.node):
        return False
    proto = light_copy(model.proto)
    for value in proto.graph.input:
        if value.name in feed:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in feed[value.name].shape]
            value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return False  # nothing is known; the run itself has a time limit
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)]
    return any(math.prod(dim.dim_value for dim in dims) > _MOST_NUMBERS for dims in shapes if dims)
