"""What passes do with a graph of onnx-graphsurgeon: read constants, find neighbours, add, replace, sort.

Constants are read through `values`, which never caches: graphsurgeon would otherwise turn packed int4 data
into a broken array on export.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.core.errors import GraphError
from passes.graph.external_data import element_type, tensor_array

__all__ = [
    "add_constant",
    "add_shared",
    "consumers",
    "is_constant",
    "packed_constant",
    "producer",
    "replace_uses",
    "sort_nodes",
    "subgraphs",
    "unique_name",
    "values",
    "values_type",
]


def _needs(node: gs.Node) -> Iterator[Any]:
    """Tensors that the node reads, those read inside its subgraphs included."""
    yield from node.inputs
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from value.outputs
            for inner in value.nodes:
                yield from _needs(inner)


def sort_nodes(graph: gs.Graph) -> None:
    """Topological order that keeps the nodes' present order wherever it can, subgraphs too.

    graphsurgeon's own sort is by depth level: it interleaves branches and makes diffs unreadable.
    """
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    waiting: dict[int, int] = {}
    readers: dict[int, list[gs.Node]] = {}
    ready: list[int] = []
    for node in graph.nodes:
        sources = {id(t.inputs[0]): t.inputs[0] for t in _needs(node) if t.inputs}
        count = 0
        for key in sources:
            if key in order and key != id(node):
                readers.setdefault(key, []).append(node)
                count += 1
        waiting[id(node)] = count
        if not count:
            heapq.heappush(ready, order[id(node)])
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                sort_nodes(value)
    nodes, result = list(graph.nodes), []
    while ready:
        node = nodes[heapq.heappop(ready)]
        result.append(node)
        for reader in readers.get(id(node), []):
            waiting[id(reader)] -= 1
            if not waiting[id(reader)]:
                heapq.heappush(ready, order[id(reader)])
    if len(result) != len(nodes):
        raise GraphError(f"graph '{graph.name}' has a cycle; export the model again")
    graph.nodes[:] = result


def is_constant(tensor: Any) -> bool:
    """Whether the tensor's value is known: an initializer, or the output of a Constant node."""
    if isinstance(tensor, gs.Constant):
        return True
    return len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and "value" in tensor.inputs[0].attrs


def _held(tensor: Any) -> Any:
    """The array or LazyValues of a constant tensor."""
    if not isinstance(tensor, gs.Constant):
        tensor = tensor.inputs[0].attrs["value"]
    return tensor._values


def values(tensor: Any) -> npt.NDArray[Any]:
    """The array of a constant tensor, without caching it in the graph (see the module's note)."""
    held = _held(tensor)
    return tensor_array(held.tensor) if isinstance(held, LazyValues) else cast(npt.NDArray[Any], held)


def values_type(tensor: Any) -> np.dtype[Any]:
    """The type of `values`, without reading them."""
    held = _held(tensor)
    return element_type(held.tensor) if isinstance(held, LazyValues) else cast(np.dtype[Any], held.dtype)


def producer(tensor: Any) -> gs.Node | None:
    """The node that writes the tensor; None for graph inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Any) -> list[gs.Node]:
    """The nodes that read the tensor, subgraphs included, each once, in order."""
    unique: dict[int, gs.Node] = {id(node): node for node in tensor.outputs}
    return list(unique.values())


def subgraphs(graph: gs.Graph, path: str = "") -> Iterator[tuple[gs.Graph, str]]:
    """The graph and all nested ones with their paths (`path` itself, "", for the top)."""
    yield graph, path
    for node in graph.nodes:
        for key, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                yield from subgraphs(value, f"{path}{node.name}/{key}/")


def unique_name(graph: gs.Graph, hint: str) -> str:
    """`hint`, or `hint_N`, not yet the name of a tensor or node of the graph or its subgraphs."""
    taken = graph.__dict__.setdefault("_onnxq_names", None)
    if taken is None:
        taken = set()
        for current, _ in subgraphs(graph):
            taken.update(current.tensors().keys())
            taken.update(node.name for node in current.nodes)
            taken.update(tensor.name for tensor in (*current.inputs, *current.outputs))
        graph.__dict__["_onnxq_names"] = taken
    name, serial = hint, 0
    while name in taken:
        serial += 1
        name = f"{hint}_{serial}"
    taken.add(name)
    return name


def add_constant(graph: gs.Graph, hint: str, array: npt.NDArray[Any]) -> gs.Constant:
    """A new initializer named after `hint`, stored as raw data."""
    name = unique_name(graph, hint)
    return gs.Constant(name, LazyValues(numpy_helper.from_array(np.asarray(array, order="C"), name)))


def add_shared(graph: gs.Graph, hint: str, array: npt.NDArray[Any]) -> gs.Constant:
    """As `add_constant`; for the same hint and values the same initializer, so that what nodes shared before
    an edit they share after it."""
    held = graph.__dict__.setdefault("_onnxq_shared", {})
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    key = (hint, array.dtype.str, array.shape, digest)
    if key not in held:
        held[key] = add_constant(graph, hint, array)
    return cast(gs.Constant, held[key])


def packed_constant(graph: gs.Graph, hint: str, codes: npt.NDArray[Any], data_type: int) -> gs.Constant:
    """A new initializer of a sub-byte type (INT4, UINT4, INT2, UINT2), packed low element first.

    codes: int8 or uint8, one code an element.
    """
    name = unique_name(graph, hint)
    bits = 4 if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 2
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.uint8) & (2**bits - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    rows = padded.reshape(-1, per_byte)
    packed = np.zeros(len(rows), np.uint8)
    for position in range(per_byte):
        packed |= (rows[:, position] << (bits * position)).astype(np.uint8)
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=codes.shape, raw_data=packed.tobytes())
    return gs.Constant(name, LazyValues(tensor))


def replace_uses(graph: gs.Graph, old: Any, new: Any, only: Sequence[gs.Node] | None = None) -> None:
    """Make readers of `old` read `new`: the nodes in `only`, or all of them and the graph's outputs."""
    chosen = consumers(old) if only is None else list(only)
    for node in chosen:
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
    if only is None:
        for index, tensor in enumerate(graph.outputs):
            if tensor is old:
                graph.outputs[index] = new
