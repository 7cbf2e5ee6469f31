"""What stays float in a model file: every float weight, by what reads it, with its bytes.

Looked at are initializers, sparse ones too, and Constants of the main graph, of graphs nested in it and of
functions. Scales of quantized weights belong to these and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from passes.graph.layers import LAYER_OPS
from passes.graph.model import Model, every_graph
from runtime_ops.functions import DOMAIN

__all__ = ["SMALL", "FloatWeight", "float_weights"]

_ITEM_BYTES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.BFLOAT16: 2,
}
_MOVES = frozenset(
    ("Cast", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
)
_RECURRENT = ("GRU", "LSTM", "RNN")
_EMBEDDINGS = ("EmbedLayerNormalization", "Gather", "GatherElements", "GatherND")
_SCALED = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLSTM")
# The kind of vectors and scalars: biases, means, factors.
SMALL = "bias or factor"


@dataclass(frozen=True)
class FloatWeight:
    """One float tensor of a file.

    kind: embedding, LSTM, GRU, RNN, layer, function, or the operator that reads it; SMALL for vectors and
    scalars. node: the reader, or the tensor itself for an embedding. place: function or node that holds the
    graph it is in, empty for the main graph. dtype: float32, float16, ... bytes: what it takes in the file.
    """

    tensor: str
    kind: str
    node: str
    place: str
    dtype: str
    bytes: int


@dataclass(frozen=True)
class _Stored:
    """A float tensor where it is stored."""

    name: str
    dims: tuple[int, ...]
    data_type: int
    elements: int
    place: str

    @property
    def bytes(self) -> int:
        return self.elements * _ITEM_BYTES[self.data_type]


class _Scope:
    """A graph with all that are nested in it, or the body of a function: who reads what."""

    def __init__(self, graph: onnx.GraphProto, place: str, functions: set[tuple[str, str]]) -> None:
        self.functions = functions
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for current in every_graph(graph):
            for node in current.node:
                for index, name in enumerate(node.input):
                    self.readers.setdefault(name, []).append((node, index))
        self.stored = [
            tensor for tensor in _stored(graph, place) if tensor.data_type in _ITEM_BYTES and tensor.elements
        ]

    def uses(self, name: str, seen: set[str]) -> Iterator[tuple[onnx.NodeProto, int, str]]:
        """Nodes that read the tensor, behind reshapes and the like too; with the input and its name."""
        if name in seen:
            return
        seen.add(name)
        for node, index in self.readers.get(name, []):
            if node.op_type in _MOVES and index == 0:
                yield from self.uses(node.output[0], seen)
            else:
                yield node, index, name

    def described(self, tensor: _Stored) -> FloatWeight | None:
        """What the tensor is; None for the scale of something quantized, and for what nobody reads."""
        found = [
            (rank, kind, node.name or node.output[0])
            for node, index, _ in self.uses(tensor.name, set())
            for rank, kind in [self._kind(node, index, tensor.dims)]
        ]
        if not found or all(kind == "" for _, kind, _ in found):
            return None
        _, kind, node = min(entry for entry in found if entry[1])
        dtype = {"float": "float32", "double": "float64"}
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        subject = tensor.name if kind == "embedding" else node
        return FloatWeight(tensor.name, kind, subject, tensor.place, dtype.get(name, name), tensor.bytes)

    def _kind(self, node: onnx.NodeProto, index: int, dims: tuple[int, ...]) -> tuple[int, str]:
        """(priority among several readers, kind) of a weight that the node reads at `index`."""
        if node.domain == DOMAIN or (node.op_type in _SCALED and index):
            return 9, ""
        if (node.domain, node.op_type) in self.functions:
            return 3, "function"
        if node.op_type in _EMBEDDINGS and index == 0 and len(dims) > 1:
            return 0, "embedding"
        if node.op_type in _RECURRENT:
            return 1, node.op_type
        if node.op_type in LAYER_OPS and index < 2 and len(dims) > 1:
            return 2, "layer"
        # Such as the scale of channels, [1, C, 1, 1].
        return (4, node.op_type) if sum(dim > 1 for dim in dims) > 1 else (5, SMALL)


def _stored(graph: onnx.GraphProto, place: str) -> Iterator[_Stored]:
    def held(name: str, tensor: onnx.TensorProto) -> _Stored:
        return _Stored(name, tuple(tensor.dims), tensor.data_type, math.prod(tensor.dims), place)

    for tensor in graph.initializer:
        yield held(tensor.name, tensor)
    for sparse in graph.sparse_initializer:
        values = sparse.values
        yield _Stored(values.name, tuple(sparse.dims), values.data_type, math.prod(values.dims), place)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield held(node.output[0], attribute.t)
            elif node.op_type == "Constant" and attribute.floats:
                count = len(attribute.floats)
                yield _Stored(node.output[0], (count,), onnx.TensorProto.FLOAT, count, place)
            for nested in (attribute.g, *attribute.graphs):
                yield from _stored(nested, place or node.name or node.op_type)


def _scopes(model: Model) -> Iterator[_Scope]:
    called = {(held.domain, held.name) for held in model.proto.functions if held.domain != DOMAIN}
    yield _Scope(model.proto.graph, "", called)
    for held in model.proto.functions:
        if held.domain != DOMAIN:
            body = onnx.GraphProto(node=held.node)
            yield _Scope(body, f"{held.domain}::{held.name}", called)


def float_weights(model: Model) -> list[FloatWeight]:
    """Every float weight of the file, largest first. A model of any size; no weight is copied or decoded."""
    found = [scope.described(tensor) for scope in _scopes(model) for tensor in scope.stored]
    return sorted((weight for weight in found if weight), key=lambda weight: -weight.bytes)
