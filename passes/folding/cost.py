"""Which nodes of constants are worth working out: those whose results take no more bytes than what goes.

Working out a set of nodes removes the nodes, and each constant that nothing else reads; it adds the results
that other nodes read. The best set is a minimum cut (project selection): `maximum_flow` finds it exactly, for
chains whose middle is large and whose end is small as well as for weights that others read too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from passes.graph.editing import consumers

__all__ = ["paying"]

# A node's fields but for its names and attributes, and an initializer's.
_NODE_BYTES, _TENSOR_BYTES = 24, 16
# scipy's flows are int32; no cut of an honest model comes near it in these units.
_FOREVER = 2**30
_SOURCE, _SINK = 0, 1


def _node_bytes(node: gs.Node) -> int:
    names = sum(len(tensor.name) for tensor in (*node.inputs, *node.outputs)) + len(node.op)
    return _NODE_BYTES + names + 12 * len(node.attrs)


@dataclass
class _Cut:
    """A network in the making. Vertices on the source's side are worked out, or (of tensors) are gone."""

    edges: list[tuple[int, int, int]] = field(default_factory=list)
    count: int = 2

    def vertex(self) -> int:
        self.count += 1
        return self.count - 1

    def edge(self, start: int, stop: int, size: int, unit: int = 1) -> None:
        self.edges.append((start, stop, min(-(-size // unit), _FOREVER)))

    def source_side(self) -> set[int]:
        starts, stops, sizes = zip(*self.edges, strict=True)
        shape = (self.count, self.count)
        network = coo_array((np.asarray(sizes, np.int32), (starts, stops)), shape=shape).tocsr()
        flow = maximum_flow(network, _SOURCE, _SINK).flow
        left = (network - flow).tocsr()
        left.data = np.maximum(left.data, 0)
        left.eliminate_zeros()
        return set(breadth_first_order(left, _SOURCE, return_predecessors=False).tolist())


def paying(
    nodes: Sequence[gs.Node], outputs: Sequence[Any], size: Callable[[Any], int]
) -> tuple[list[gs.Node], int]:
    """The nodes to work out, of those that can be, and the bytes that the rest of them would have cost.

    nodes: in graph order, their inputs constants or results of nodes before them. outputs: tensors that the
    graph must keep. size: bytes of a tensor's values.
    """
    if not nodes:
        return [], 0
    kept = {id(tensor) for tensor in outputs}
    tensors = {id(t): t for node in nodes for t in (*node.inputs, *node.outputs) if not t.is_empty()}
    bytes_of = {key: size(tensor) + len(tensor.name) + _TENSOR_BYTES for key, tensor in tensors.items()}
    total = sum(bytes_of.values()) + sum(map(_node_bytes, nodes))
    # Coarser units where int32 would not do.
    unit = max(1, -(-total // _FOREVER))
    cut = _Cut()
    place = {id(node): cut.vertex() for node in nodes}
    for key, tensor in tensors.items():
        gone = cut.vertex()
        maker = place.get(id(tensor.inputs[0])) if len(tensor.inputs) == 1 else None
        cut.edge(_SOURCE if maker is None else maker, gone, bytes_of[key], unit)
        readers = [place.get(id(reader)) for reader in consumers(tensor)]
        if key in kept or not readers or None in readers:
            cut.edge(gone, _SINK, _FOREVER)
        for reader in readers:
            if reader is not None:
                cut.edge(gone, reader, _FOREVER)
    for node in nodes:
        cut.edge(_SOURCE, place[id(node)], _node_bytes(node), unit)
        for tensor in node.inputs:
            before = place.get(id(tensor.inputs[0])) if len(tensor.inputs) == 1 else None
            if before is not None:
                cut.edge(place[id(node)], before, _FOREVER)
    chosen = cut.source_side()
    folded = [node for node in nodes if place[id(node)] in chosen]
    left = [node for node in nodes if place[id(node)] not in chosen]
    cost = sum(bytes_of[id(t)] for node in left for t in node.outputs if not t.is_empty())
    return folded, cost
