"""The checks of an ONNX model: what every file has to pass before a command or a pass works with it.

`full_check` is the ONNX checker with strict shape inference, run on a copy without the values of large
weights, so that its cost does not depend on their size. It knows three things better than the checker does:

1. An output or input may be declared without a shape (IR.md allows it; the checker does not).
2. The length of a weight's data has to match its shape and type exactly.
3. Every text has to be UTF-8, or Python cannot read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx

from passes.core.errors import InvalidModelError

__all__ = ["Refusal", "full_check", "light_copy", "refuse_unreadable"]

# The checker and shape inference need the values of shape tensors and scalars, never those of weights.
_KEPT_ELEMENTS = 1024
_ELEMENT_BITS = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    **{
        getattr(onnx.TensorProto, kind): bits
        for kind, bits in (
            ("FLOAT8E4M3FN", 8),
            ("FLOAT8E4M3FNUZ", 8),
            ("FLOAT8E5M2", 8),
            ("FLOAT8E5M2FNUZ", 8),
            ("FLOAT8E8M0", 8),
            ("FLOAT4E2M1", 4),
            ("UINT2", 2),
            ("INT2", 2),
        )
        if hasattr(onnx.TensorProto, kind)
    },
}
# Field of a tensor's values -> the types that may use it, and the values of one element.
_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


class Refusal(Exception):  # noqa: N818 - caught by those who know what to do about it
    """Why the ONNX checker refuses a model, in one line."""


def _elements(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _tensor_problem(tensor: onnx.TensorProto) -> str | None:
    """What is wrong with a tensor's own type, dimensions or length of data, if anything."""
    kind = tensor.data_type
    if kind != onnx.TensorProto.STRING and kind not in _ELEMENT_BITS:
        return f"has the unknown type {kind}"
    if any(dim < 0 for dim in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    count = _elements(tensor)
    if tensor.HasField("raw_data"):
        if kind == onnx.TensorProto.STRING:
            return "holds texts as raw bytes"
        wanted, found, unit = (count * _ELEMENT_BITS[kind] + 7) // 8, len(tensor.raw_data), "bytes"
    else:
        bits = _ELEMENT_BITS.get(kind, 0)
        wanted = count * 2 if kind in _COMPLEX else count if bits not in (2, 4) else -(-count * bits // 8)
        found, unit = len(getattr(tensor, _FIELDS.get(int(kind), "int32_data"))), "values"
    if found == wanted:
        return None
    return f"has {found} {unit} of data where its shape {list(tensor.dims)} needs {wanted}"


class _NotUtf8(Exception):  # noqa: N818 - never leaves this module
    """A text of the model is not UTF-8: protobuf gives it as bytes."""


def _refuse_bytes(*texts: object) -> None:
    for text in texts:
        if text.__class__ is bytes:
            raise _NotUtf8


def _check_types(values: Iterable[onnx.ValueInfoProto]) -> None:
    """Texts of declared values."""
    for value in values:
        _refuse_bytes(value.name, value.doc_string)
        if value.type.HasField("tensor_type"):
            _refuse_bytes(*(d.dim_param for d in value.type.tensor_type.shape.dim if d.HasField("dim_param")))


def _graphs_of(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return (attribute.g,)
    return attribute.graphs if attribute.type == onnx.AttributeProto.GRAPHS else ()


def _tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.type == onnx.AttributeProto.TENSOR:
        yield attribute.t
    elif attribute.type == onnx.AttributeProto.TENSORS:
        yield from attribute.tensors
    elif attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


class _Reading:
    """A walk over everything with a name; `where` says what is being read, for the message."""

    def __init__(self) -> None:
        self.where = "the model"

    def model(self, proto: onnx.ModelProto) -> None:
        _refuse_bytes(*(entry.domain for entry in proto.opset_import))
        _refuse_bytes(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        self.where = "the metadata"
        _refuse_bytes(*(text for entry in proto.metadata_props for text in (entry.key, entry.value)))
        for number, function in enumerate(proto.functions):
            self.where = f"function {number}"
            _refuse_bytes(function.name, function.domain, function.doc_string)
            _refuse_bytes(*function.input, *function.output, *function.attribute)
            _refuse_bytes(*(entry.domain for entry in function.opset_import))
            _check_types(function.value_info)
            self.nodes(function.node, f"function '{function.name}', ")
        self.graph(proto.graph, "")

    def graph(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.where = f"{prefix}the graph"
        _refuse_bytes(graph.name, graph.doc_string)
        for number, tensor in enumerate(graph.initializer):
            self.where = f"{prefix}initializer {number}"
            self.tensor(tensor, f"{prefix}initializer '{tensor.name}'")
        for sparse in graph.sparse_initializer:
            self.where = f"{prefix}a sparse initializer"
            for tensor in (sparse.values, sparse.indices):
                self.tensor(tensor, f"{prefix}sparse initializer '{sparse.values.name}'")
        self.where = f"{prefix}the inputs, outputs and types of the graph"
        for field in (graph.input, graph.output, graph.value_info):
            _check_types(field)
        self.nodes(graph.node, prefix)

    def nodes(self, nodes: Iterable[onnx.NodeProto], prefix: str) -> None:
        for number, node in enumerate(nodes):
            self.where = f"{prefix}node {number}"
            name, op = node.name, node.op_type
            _refuse_bytes(name, op, node.domain, node.overload, node.doc_string, *node.input, *node.output)
            for attribute in node.attribute:
                _refuse_bytes(attribute.name, attribute.ref_attr_name)
                label = f"{prefix}node '{name or number}' ({op}): "
                for tensor in _tensors_of(attribute):
                    self.tensor(tensor, f"{label}'{attribute.name}'")
                for graph in _graphs_of(attribute):
                    self.graph(graph, label)
                self.where = f"{prefix}node {number}"

    def tensor(self, tensor: onnx.TensorProto, label: str) -> None:
        _refuse_bytes(tensor.name, tensor.doc_string)
        problem = _tensor_problem(tensor)
        if problem is not None:
            raise InvalidModelError(f"{label} {problem}")


def refuse_unreadable(proto: onnx.ModelProto, name: str) -> None:
    """Raise InvalidModelError for texts that are not UTF-8 and tensors whose data do not fit their shape."""
    reading = _Reading()
    try:
        reading.model(proto)
    except _NotUtf8:
        raise InvalidModelError(
            f"{name}: {reading.where} has a text that is not UTF-8; export the model again"
        ) from None
    except InvalidModelError as error:
        raise InvalidModelError(f"{name}: {error}; export the model again") from None


def light_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the values of large weights, which become inputs of the same type."""
    light = onnx.ModelProto(domain=proto.domain)
    if proto.HasField("ir_version"):
        light.ir_version = proto.ir_version
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.metadata_props.extend(proto.metadata_props)
    graph, source = light.graph, proto.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    listed = {value.name for value in source.input}
    weights = dict[str, onnx.TensorProto]()
    for tensor in source.initializer:
        # A name that is taken twice is the checker's to find.
        if _elements(tensor) <= _KEPT_ELEMENTS or tensor.name in weights:
            graph.initializer.append(tensor)
        else:
            weights[tensor.name] = tensor
    for node in source.node:
        large = node.op_type == "Constant" and len(node.output) == 1 and len(node.attribute) == 1
        held = node.attribute[0].t if large and node.attribute[0].name == "value" else None
        if held is not None and _elements(held) > _KEPT_ELEMENTS and node.output[0] not in weights:
            weights[node.output[0]] = held
        else:
            graph.node.append(node)
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in weights.items()
        if name not in listed
    )
    return light


def _with_shapes(light: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a made-up type for each input and output that declares none."""
    shapeless = [
        value
        for value in (*light.graph.input, *light.graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    shapeless += [value for value in light.graph.output if not value.HasField("type")]
    if not shapeless:
        return light
    names = {value.name for value in shapeless}
    copy = onnx.ModelProto()
    copy.CopyFrom(light)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.name in names:
            tensor = value.type.tensor_type
            tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
            tensor.shape.SetInParent()
    return copy


def _reason(error: Exception) -> str:
    """The checker's message in one line, without its own heading."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ShapeInferenceError] ")[:300]


def full_check(proto: onnx.ModelProto) -> None:
    """The ONNX checker with strict shape inference. Raises Refusal with the reason."""
    light = light_copy(proto)
    try:
        onnx.checker.check_model(_with_shapes(light))
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Refusal(_reason(error)) from None
    except (RuntimeError, ValueError, TypeError) as error:
        # Both raise bare errors for models that they cannot even walk through.
        raise Refusal(_reason(error)) from None
