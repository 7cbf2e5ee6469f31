"""Weights that stand as bit streams, as plain float again: what a loader hands over, and the pass `decode`.

A stream's node and the Slice, Cast and Transpose that passes/formats/bitstream.py puts behind it are computed
here; what comes out is bit for bit what the function in the file gives. Nodes whose streams are no constants
stay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from passes.core.base import Context, Pass, register
from passes.core.errors import InvalidModelError
from passes.formats import stream_of
from passes.graph.external_data import is_external, tensor_array
from passes.graph.model import Model, every_graph, is_large
from passes.graph.spilling import spill_array
from passes.policy import POLICY_KEY
from runtime_ops.functions import DOMAIN
from runtime_ops.kernels import empty_floats

__all__ = ["Decode", "decode_each", "decode_weights", "decoded_bytes", "has_packed_weights"]

Array = npt.NDArray[Any]
_BEHIND = ("Slice", "Cast", "Transpose")


def _is_packed(node: onnx.NodeProto) -> bool:
    return stream_of(node.domain, node.op_type) is not None


def has_packed_weights(proto: onnx.ModelProto) -> bool:
    """Whether any weight of the model stands as a bit stream."""
    return any(_is_packed(node) for graph in every_graph(proto.graph) for node in graph.node)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _array(tensor: onnx.TensorProto, dtype: npt.DTypeLike) -> Array:
    """The tensor's values, without the copy that onnx makes of raw data."""
    if is_external(tensor):
        return tensor_array(tensor)
    raw = tensor.raw_data  # each access is a copy
    return np.frombuffer(raw, dtype) if raw else numpy_helper.to_array(tensor)


def _read(tensor: onnx.TensorProto, kind: str) -> Array:
    """An input of a stream's node, of the element type that its `Stream.reads` names."""
    if kind != "scale":
        return _array(tensor, np.dtype(kind))
    if tensor.data_type not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT):
        raise ValueError("its scales are neither float16 nor float32")
    return _array(tensor, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _decoded(
    node: onnx.NodeProto, held: dict[str, onnx.TensorProto], name: str, out: npt.NDArray[np.float32] | None
) -> Array:
    """The array that a stream's node gives, in `out` where there is one, flat.

    Raises InvalidModelError naming the node where it is malformed.
    """
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    shape = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "shape"), None)
    try:
        if shape is None:
            raise KeyError("shape")
        stream = stream_of(node.domain, node.op_type)
        assert stream is not None  # `_is_packed` said so
        arrays = [_read(held[name], kind) for name, kind in zip(node.input, stream.reads, strict=False)]
        return stream.decode(arrays, numbers, shape, out).reshape(shape)
    except (KeyError, ValueError, TypeError) as error:
        what = f"attribute {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidModelError(
            f"{name}: node '{node.name}' ({node.op_type}) is malformed: {what}; write the file again"
        ) from None


def _moved(node: onnx.NodeProto, array: Array, held: dict[str, onnx.TensorProto]) -> Array:
    """What one of the nodes behind a stream makes of its array."""
    attributes = _attributes(node)
    if node.op_type == "Cast":
        kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
        return array.astype(kind)
    if node.op_type == "Transpose":
        return np.transpose(array, attributes.get("perm"))
    begin, end = (int(tensor_array(held[name])[0]) for name in node.input[1:3])
    return array[begin:end]


@dataclass
class _Uses:
    """Who reads each tensor, over all graphs of a model."""

    readers: dict[str, list[onnx.NodeProto]]
    outputs: set[str]

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Uses:
        readers: dict[str, list[onnx.NodeProto]] = {}
        outputs: set[str] = set()
        for graph in every_graph(proto.graph):
            outputs.update(value.name for value in graph.output)
            for node in graph.node:
                for name in node.input:
                    readers.setdefault(name, []).append(node)
        return cls(readers, outputs)

    def behind(self, name: str, held: dict[str, onnx.TensorProto]) -> onnx.NodeProto | None:
        """The only reader of a tensor, where it is one that `_moved` knows."""
        found = self.readers.get(name, [])
        if len(found) != 1 or name in self.outputs or found[0].op_type not in _BEHIND:
            return None
        node = found[0]
        known = all(tensor in held for tensor in node.input[1:])
        return node if known and (node.op_type != "Slice" or len(node.input) == 3) else None


def _space(
    nodes: Sequence[onnx.NodeProto], held: dict[str, onnx.TensorProto]
) -> list[npt.NDArray[np.float32] | None]:
    """Room for what each stream's node gives, in one piece of memory, which costs far fewer page faults.

    None where the stream cannot hold as many values as the node's shape says.
    """
    counts = []
    for node in nodes:
        shape = next((a.ints for a in node.attribute if a.name == "shape"), ())
        count = math.prod(shape) if shape and min(shape) > 0 else 0
        counts.append(count if count <= 4 * math.prod(held[node.input[0]].dims) else 0)
    # Each weight begins with a cache line.
    starts = [0, *itertools.accumulate(-(-count // 16) * 16 for count in counts)]
    memory = empty_floats([starts[-1]])
    return [
        memory[start : start + count] if count else None for start, count in zip(starts, counts, strict=False)
    ]


class _Streams:
    """The constant bit streams of a model, each with the nodes behind it. own: see `decode_weights`."""

    def __init__(self, model: Model, own: bool) -> None:
        proto = model.proto
        if not own:
            proto = onnx.ModelProto()
            proto.CopyFrom(model.proto)
        self.model = model.with_proto(proto)
        self.held = {
            tensor.name: tensor for graph in every_graph(proto.graph) for tensor in graph.initializer
        }
        self.uses = _Uses.of(proto)
        self.chains = [
            _chain(node, self.uses, self.held)
            for graph in every_graph(proto.graph)
            for node in graph.node
            if _is_packed(node) and all(name in self.held for name in node.input if name)
        ]

    def decoded(self, chain: list[onnx.NodeProto], out: npt.NDArray[np.float32] | None) -> Array:
        """The array that a stream and the nodes behind it give, in `out` where it fits."""
        turned = any(node.op_type == "Transpose" for node in chain)
        array = _decoded(chain[0], self.held, self.model.name, None if turned else out)
        node = chain[0]
        try:
            for node in chain[1:]:
                array = _moved(node, array, self.held)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise InvalidModelError(
                f"{self.model.name}: node '{node.name}' ({node.op_type}) behind a bit stream is malformed: "
                f"{error}; write the file again"
            ) from None
        if array.flags.c_contiguous or out is None or array.dtype != out.dtype or array.size > out.size:
            return np.ascontiguousarray(array)
        # What is turned gets its room at the end: room for both would be twice the weights.
        target = out[: array.size].reshape(array.shape)
        np.copyto(target, array)
        return target

    def without(self) -> Model:
        """The model without the streams and without what only they read."""
        _drop(self.model.proto, {id(node) for chain in self.chains for node in chain}, self.uses)
        return self.model


def decode_weights(model: Model, *, own: bool = False) -> tuple[Model, dict[str, Array]]:
    """The model without its streams, and the arrays that belong in their place, by tensor name.

    The tensors have no maker in the model that is returned: they become initializers of its main graph, with
    their values or as external data. own: the given model may be taken apart; otherwise it is not touched.
    """
    streams = _Streams(model, own)
    space = _space([chain[0] for chain in streams.chains], streams.held)
    arrays = {
        chain[-1].output[0]: streams.decoded(chain, out)
        for chain, out in zip(streams.chains, space, strict=True)
    }
    return streams.without(), arrays


def decode_each(
    model: Model, write: Callable[[Array, str], onnx.TensorProto], *, own: bool = False
) -> tuple[Model, list[onnx.TensorProto]]:
    """As `decode_weights`, but one weight at a time; `write` makes a tensor of each (array, name)."""
    streams = _Streams(model, own)
    tensors = [write(streams.decoded(chain, None), chain[-1].output[0]) for chain in streams.chains]
    return streams.without(), tensors


def decoded_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the floats that the model's bit streams stand for."""
    nodes = (node for graph in every_graph(proto.graph) for node in graph.node if _is_packed(node))
    return sum(4 * math.prod(a.ints) for node in nodes for a in node.attribute if a.name == "shape")


def _chain(node: onnx.NodeProto, uses: _Uses, held: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """A stream's node and the nodes behind it that belong to the weight."""
    chain = [node]
    while (follower := uses.behind(chain[-1].output[0], held)) is not None:
        chain.append(follower)
    return chain


def _delete(field: Any, doomed: Sequence[int]) -> None:
    """Remove entries of a repeated field, run by run from the end; indices ascending."""
    stop = len(doomed)
    while stop:
        start = stop - 1
        while start and doomed[start - 1] == doomed[start] - 1:
            start -= 1
        del field[doomed[start] : doomed[stop - 1] + 1]
        stop = start


def _drop(proto: onnx.ModelProto, gone: set[int], uses: _Uses) -> None:
    """Remove nodes, the initializers that only they read, and functions that nobody calls any more."""
    unread = {
        name
        for name, readers in uses.readers.items()
        if name not in uses.outputs and all(id(node) in gone for node in readers)
    }
    for graph in list(every_graph(proto.graph)):
        _delete(graph.node, [index for index, node in enumerate(graph.node) if id(node) in gone])
        dropped = {tensor.name for tensor in graph.initializer if tensor.name in unread}
        for field in (graph.initializer, graph.input):  # IR 3 lists initializers among the inputs
            _delete(field, [index for index, entry in enumerate(field) if entry.name in dropped])
    calls = {(node.domain, node.op_type) for graph in every_graph(proto.graph) for node in graph.node}
    for index in range(len(proto.functions) - 1, -1, -1):
        function = proto.functions[index]
        if function.domain == DOMAIN and (DOMAIN, function.name) not in calls:
            del proto.functions[index]
    if not any(domain == DOMAIN for domain, _ in calls):
        for index in range(len(proto.opset_import) - 1, -1, -1):
            if proto.opset_import[index].domain == DOMAIN:
                del proto.opset_import[index]


@register
@dataclass(frozen=True)
class Decode(Pass):
    """Turn weights that stand as bit streams into plain float initializers."""

    name: ClassVar[str] = "decode"
    keeps_function: ClassVar[bool] = True

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        if not has_packed_weights(model.proto):
            return model, False
        large = is_large(model.proto, decoded_bytes(model.proto))
        result, tensors = decode_each(model, spill_array if large else numpy_helper.from_array)
        for tensor in tensors:
            result.proto.graph.initializer.append(tensor)
            if result.proto.ir_version < 4:  # which lists initializers among the inputs
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                result.proto.graph.input.append(value)
            context.note("applied", "", f"{tensor.name}: float again")
        if not has_packed_weights(result.proto):
            # The layers are float again, so that the next quantize may treat them.
            kept = [entry for entry in result.proto.metadata_props if entry.key != POLICY_KEY]
            copies = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
            del result.proto.metadata_props[:]
            result.proto.metadata_props.extend(copies)
        return result, bool(tensors)
