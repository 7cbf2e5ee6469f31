"""Walks over the graphs of a model as protobuf, and the order of their nodes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import onnx

from passes.core.errors import InvalidModelError

__all__ = ["every_graph", "nested_graphs", "sort_graph"]


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that are nested in its nodes' attributes, outermost first."""
    yield graph
    for node in graph.node:
        for inner in nested_graphs(node):
            yield from every_graph(inner)


def nested_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _read(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node reads, those that graphs nested in it read from outside included."""
    found = set(node.input)
    for graph in nested_graphs(node):
        read = {value.name for value in graph.output}.union(*(_read(inner) for inner in graph.node))
        made = {entry.name for field in (graph.input, graph.initializer) for entry in field}
        found |= read - made.union(*(inner.output for inner in graph.node))
    return found


def sort_graph(graph: onnx.GraphProto, name: str) -> str:
    """Sort a graph's nodes in place, keeping their order where possible; the first node that moved, or ''."""
    makers = {output: at for at, node in enumerate(graph.node) for output in node.output if output}
    readers: list[list[int]] = [[] for _ in graph.node]
    waiting = [0] * len(graph.node)
    for at, node in enumerate(graph.node):
        for source in {makers[tensor] for tensor in _read(node) if tensor in makers}:
            readers[source].append(at)
            waiting[at] += 1
    ready = [at for at, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers[at]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.node):
        node = graph.node[next(at for at, count in enumerate(waiting) if count)]
        raise InvalidModelError(
            f"{name}: node '{node.name or next(iter(node.output), '')}' ({node.op_type}) waits for its own "
            "result: the graph has a cycle; export the model again"
        )
    moved = next((at for place, at in enumerate(order) if at != place), None)
    label = ""
    if moved is not None:
        first = graph.node[moved]
        label = first.name or next(iter(first.output), "")
        nodes = [onnx.NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
        del graph.node[:]
        graph.node.extend(nodes)
    for node in graph.node:
        for inner in nested_graphs(node):
            label = sort_graph(inner, name) or label
    return label
