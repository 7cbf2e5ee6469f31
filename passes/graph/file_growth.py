"""How much larger a file becomes by a rewrite, apart from what names take."""

from __future__ import annotations

import onnx

__all__ = ["growth"]

# New names of nodes and tensors, and the shapes of values.
_SLACK, _SLACK_A_NODE = 512, 32


def _bytes(proto: onnx.ModelProto) -> int:
    """Of initializers and nodes, nested graphs included; part by part, for models of more than 2 GB."""
    graph = proto.graph
    stored = sum(tensor.ByteSize() - len(tensor.name) for tensor in graph.initializer)
    return int(stored + sum(node.ByteSize() - len(node.name) for node in graph.node))


def growth(before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    """Bytes that `after` takes more than `before`; 0 for no more than names could explain."""
    more = _bytes(after) - _bytes(before)
    return more if more > _SLACK + _SLACK_A_NODE * len(after.graph.node) else 0
