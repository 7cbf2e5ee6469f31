"""What is known about tensors before a model runs: dtypes, shapes, and partly known small integer tensors.

Types come from onnx shape inference with data propagation. A dimension is an int where known, a str where
it is a symbol (a dynamic batch, so it stays dynamic), None where unknown. Equal symbols are equal sizes.
onnx forgets the batch's symbol at every Conv and pooling; it is carried through those here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from passes.graph.boundary import source_model

__all__ = ["Dim", "TensorType", "Types", "infer_model", "infer_types", "input_symbols"]

Dim = int | str | None

# The first dimension of the result is that of the first input.
_KEEP_BATCH = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "MaxPool",
        "SpaceToDepth",
    }
)
# The result has the shape of the first input.
_KEEP_SHAPE = frozenset(
    {
        "BatchNormalization",
        "Cast",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
_ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})

# Shape inference needs the values of shape tensors and scalars, never those of weights.
_KEPT_ELEMENTS = 1024


@dataclass(frozen=True)
class TensorType:
    """Element type (onnx.TensorProto.DataType) and dimensions; shape is None where the rank is unknown."""

    dtype: int
    shape: tuple[Dim, ...] | None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape when every dimension is a known integer."""
        if self.shape is None or not all(isinstance(dim, int) for dim in self.shape):
            return None
        return tuple(dim for dim in self.shape if isinstance(dim, int))


def _type_of(value: onnx.ValueInfoProto) -> TensorType | None:
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.elem_type:
        return None
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        # Some exporters write 0 for "unknown", so only positive numbers count as known.
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or None)
    return TensorType(tensor.elem_type, tuple(dims))


class Types:
    """Types of the tensors of a graph and its subgraphs, looked up by tensor."""

    def __init__(self, note: str = "") -> None:
        self.note = note  # why inference failed, if it did
        # The tensor is held beside its type: an id may be given again once its owner is gone.
        self._held: dict[int, tuple[Any, TensorType]] = {}

    def add(self, tensor: Any, kind: TensorType) -> None:
        self._held[id(tensor)] = (tensor, kind)

    def of(self, tensor: Any) -> TensorType | None:
        """The tensor's type; None where nothing is known of it, or where it is no plain tensor."""
        if isinstance(tensor, gs.Constant):
            dtype = tensor.dtype
            number = dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(dtype)
            return TensorType(int(number), tuple(int(dim) for dim in tensor.shape))
        held = self._held.get(id(tensor))
        return None if held is None else held[1]

    def shape(self, tensor: Any) -> tuple[Dim, ...] | None:
        kind = self.of(tensor)
        return None if kind is None else kind.shape

    def rank(self, tensor: Any) -> int | None:
        shape = self.shape(tensor)
        return None if shape is None else len(shape)


def _light(graph: onnx.GraphProto, top: bool = True) -> onnx.GraphProto:
    """A copy without the values of weights; at the top they become inputs of the same type."""
    copy = onnx.GraphProto()
    copy.name = graph.name or "graph"
    copy.input.extend(graph.input)
    copy.output.extend(graph.output)
    copy.value_info.extend(graph.value_info)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        count = 1
        for dim in tensor.dims:
            count *= dim
        if count <= _KEPT_ELEMENTS or not top:
            copy.initializer.append(tensor)
        elif tensor.name not in listed:
            copy.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    copy.sparse_initializer.extend(graph.sparse_initializer)
    copy.node.extend(graph.node)
    return copy


def infer_model(model: onnx.ModelProto) -> tuple[onnx.GraphProto, str]:
    """The model's graph with the types of its values filled in, without its weights; and why not, if not.

    Inference that fails (a model may carry declarations that contradict each other) is not an error:
    the declared types are what is known then.
    """
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.CopyFrom(_light(model.graph))
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True).graph, ""
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        return light.graph, f"shape inference failed: {' '.join(str(error).split())[:200]}"


def input_symbols(graph: onnx.GraphProto) -> set[str]:
    """The symbolic dimensions that the graph's inputs declare; any other is an invention of inference."""
    return {
        dim.dim_param
        for value in graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.HasField("dim_param") and dim.dim_param
    }


def _pairs(graph: gs.Graph, proto: onnx.GraphProto) -> Iterator[tuple[gs.Graph, onnx.GraphProto]]:
    """A graph as imported beside its proto, and the same for everything nested in it."""
    yield graph, proto
    for node, written in zip(graph.nodes, proto.node, strict=True):
        for attribute in written.attribute:
            nested = node.attrs.get(attribute.name)
            if isinstance(nested, gs.Graph):
                yield from _pairs(nested, attribute.g)


def _joined(a: Dim, b: Dim) -> Dim:
    """The dimension of a broadcast of two, where it is sure."""
    if a == b or b == 1:
        return a
    return b if a == 1 else None


def _carried(node: gs.Node, types: Types) -> tuple[Dim, ...] | None:
    """What the inputs tell of the dimensions of the result."""
    shape = types.shape(node.inputs[0]) if node.inputs else None
    if shape is None:
        return None
    if node.op in _KEEP_SHAPE:
        return shape
    if node.op in _KEEP_BATCH or (node.op == "Flatten" and node.attrs.get("axis", 1) == 1):
        return shape[:1]
    if node.op in _ELEMENTWISE:
        other = types.shape(node.inputs[1])
        if other is None:
            return None
        rank = max(len(shape), len(other))
        padded: list[tuple[Dim, ...]] = [(1,) * (rank - len(s)) + s for s in (shape, other)]
        return tuple(_joined(a, b) for a, b in zip(*padded, strict=True))
    return None


def _carry_symbols(graph: gs.Graph, types: Types) -> None:
    for node in graph.nodes:
        if node.domain not in (None, "", "ai.onnx") or not node.outputs:
            continue
        kind, known = types.of(node.outputs[0]), _carried(node, types)
        if kind is None or kind.shape is None or known is None or isinstance(node.outputs[0], gs.Constant):
            continue
        filled: list[Dim] = list(kind.shape)
        for index, dim in enumerate(known[: len(filled)]):
            if not isinstance(filled[index], int) and dim is not None:
                filled[index] = dim
        types.add(node.outputs[0], TensorType(kind.dtype, tuple(filled)))


def infer_types(graph: gs.Graph) -> Types:
    """Types of a graph's tensors. Call it right after the import, before anything is edited."""
    inferred, note = infer_model(source_model(graph).proto)
    types = Types(note)
    for current, proto in _pairs(graph, inferred):
        tensors = current.tensors()
        for value in (*proto.value_info, *proto.input, *proto.output):
            kind, tensor = _type_of(value), tensors.get(value.name)
            if kind is not None and tensor is not None:
                types.add(tensor, kind)
        _carry_symbols(current, types)
    return types
