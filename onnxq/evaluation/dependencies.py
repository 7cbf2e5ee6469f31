"""What nodes of a protobuf graph read, and the constant nodes that they need.

The recursion is in functions of the module: a nested function that calls itself is a reference cycle, and
what it sees (a model and its weights) lives on until the garbage collector finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

__all__ = ["constant_nodes", "read_by"]


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those of its subgraphs (and hence captures from outside) included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from (name for inner in attribute.g.node for name in read_by(inner))
            yield from (value.name for value in attribute.g.output)


def constant_nodes(
    nodes: Sequence[onnx.NodeProto], makers: Mapping[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The nodes without data (DequantizeLinear of weights ...) that `nodes` need, in topological order.

    makers: tensor -> the constant node that writes it.
    """
    found: dict[int, onnx.NodeProto] = {}
    for node in nodes:
        _collect(node, makers, found)
    return list(found.values())


def _collect(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], found: dict[int, onnx.NodeProto]
) -> None:
    for name in read_by(node):
        maker = makers.get(name)
        if maker is not None and id(maker) not in found:
            _collect(maker, makers, found)
            found[id(maker)] = maker
