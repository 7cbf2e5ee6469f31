"""The tensors of a model, wherever they are, and how many bytes their values take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx

__all__ = ["every_graph", "every_tensor", "function_tensors", "stored_bytes"]

_ONE, _SEVERAL = onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS
_SUB_BYTE: dict[int, int] = {
    onnx.TensorProto.INT2: 2,
    onnx.TensorProto.UINT2: 2,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
}
# Bits of one element; a type that is not in here (undefined, or of a newer onnx) counts as nothing.
_BITS: dict[int, int] = {
    number: _SUB_BYTE.get(number, onnx.helper.tensor_dtype_to_np_dtype(number).itemsize * 8)
    for number in onnx.helper.get_all_tensor_dtypes()
    if number != onnx.TensorProto.STRING
}


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that are nested in its nodes' attributes, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_graph(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for nested in attribute.graphs:
                    yield from every_graph(nested)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == _ONE:
                yield attribute.t
            elif attribute.type == _SEVERAL:
                yield from attribute.tensors


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in every_graph(graph):
        yield from each.initializer
        for sparse in each.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        yield from _in_nodes(each.node)


def every_tensor(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, attributes of nodes, nested graphs and functions."""
    yield from _in_graph(proto.graph)
    yield from function_tensors(proto)


def function_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors in the bodies of the model's local functions."""
    for function in proto.functions:
        yield from _in_nodes(function.node)
        for node in function.node:
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from _in_graph(graph)


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the tensor's values as raw data, whether or not the model itself holds them."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    count = math.prod(tensor.dims) if all(dim >= 0 for dim in tensor.dims) else 0
    bits: int = count * _BITS.get(tensor.data_type, 0)
    return -(-bits // 8)
