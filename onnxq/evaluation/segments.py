"""Cut a model into segments at tensors through which all data flows.

Two candidates that agree on the first layers have byte-identical first segments, so that the
activations at the cut, and the session of the segment, serve both: the content decides, no policy
needs to be known. A cut stands where ONNX Runtime would not fuse across it: behind QuantizeLinear,
or at a float tensor that is read by neither an activation nor a QuantizeLinear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnxq.evaluation.dependencies import constant_nodes
from passes.graph.external_data import is_external, tensor_digest
from passes.graph.model import Model, is_large

__all__ = ["Segment", "choose_anchors", "iter_segments", "split"]

_FUSED_READERS = {
    "Relu",
    "Clip",
    "BatchNormalization",
    "Mul",
    "LeakyRelu",
    "Sigmoid",
    "HardSwish",
    "HardSigmoid",
}


@dataclass(frozen=True)
class Segment:
    """A model from one cut to the next.

    input/output: names of the tensors at its ends.
    """

    proto: onnx.ModelProto
    input: str
    output: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its bytes, computed when first asked for."""
        return _digest(self.proto)


@dataclass(frozen=True)
class _Cut:
    position: int  # the cut lies behind this node
    tensor: str
    anchor: str  # the float tensor that it stands for
    element: int


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on no graph input."""
    known = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    for node in graph.node:
        if all(name in known or not name for name in node.input) and not _has_subgraph(node):
            known.update(node.output)
    return known


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to feed."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(
        attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for attribute in node.attribute
    )


def _unstated_type(node: onnx.NodeProto) -> int:
    """Element type of a QuantizeLinear without zero point."""
    named = [attribute.i for attribute in node.attribute if attribute.name == "output_dtype"]
    return int(named[0]) if named and named[0] else onnx.TensorProto.UINT8


def _cuts(graph: onnx.GraphProto) -> list[_Cut]:
    """Every legal cut in node order; empty for graphs with several inputs, outputs or with subgraphs."""
    inputs = [value.name for value in _fed(graph)]
    if len(inputs) != 1 or len(graph.output) != 1 or graph.sparse_initializer:
        return []
    if any(_has_subgraph(node) for node in graph.node):
        return []
    constant = _constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    pending: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            if name and name not in constant:
                readers.setdefault(name, []).append(node)
                pending[name] = pending.get(name, 0) + 1
    for value in graph.output:  # never done with, so that no cut lies behind it
        pending[value.name] = pending.get(value.name, 0) + 1
    zero_points = {tensor.name: tensor.data_type for tensor in graph.initializer}
    live = set(inputs)
    cuts: list[_Cut] = []
    for position, node in enumerate(graph.node):
        for name in node.input:
            if name in pending:
                pending[name] -= 1
                if not pending[name]:
                    live.discard(name)
        live.update(name for name in node.output if name and pending.get(name) and name not in constant)
        if len(live) != 1 or node.output[0] not in live:
            continue
        name = node.output[0]
        if node.op_type == "QuantizeLinear":
            zero = node.input[2] if len(node.input) > 2 else ""
            if not zero or zero in zero_points:
                element = zero_points[zero] if zero else _unstated_type(node)
                cuts.append(_Cut(position, name, node.input[0], element))
        elif node.op_type != "DequantizeLinear" and not any(
            reader.op_type in _FUSED_READERS or reader.op_type == "QuantizeLinear"
            for reader in readers.get(name, [])
        ):
            cuts.append(_Cut(position, name, name, onnx.TensorProto.FLOAT))
    return cuts


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Float tensor -> shape behind the batch axis, where it is fully known."""
    if is_large(model.proto):
        return {}  # in one piece its weights stay in their file; segments would prepack them
    proto = onnx.shape_inference.infer_shapes(model.proto)
    shapes: dict[str, tuple[int, ...]] = {}
    for value in proto.graph.value_info:
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT or not tensor.HasField("shape"):
            continue
        dims = tensor.shape.dim[1:]
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def choose_anchors(model: Model, most: int = 20) -> dict[str, tuple[int, ...]]:
    """At most `most` cuts of a float model, spread over it, each the smallest tensor of its stretch.

    Returns anchor -> shape behind the batch axis; empty where the graph has no cut.
    """
    shapes = _shapes(model)
    cuts = [cut for cut in _cuts(model.proto.graph) if cut.anchor in shapes]
    if not cuts:
        return {}
    nodes = len(model.proto.graph.node)
    stretches: dict[int, _Cut] = {}
    for cut in cuts:
        stretch = cut.position * most // nodes
        held = stretches.get(stretch)
        if held is None or math.prod(shapes[cut.anchor]) <= math.prod(shapes[held.anchor]):
            stretches[stretch] = cut
    return {cut.anchor: shapes[cut.anchor] for cut in stretches.values()}


def _extract(
    model: Model, nodes: Sequence[onnx.NodeProto], start: onnx.ValueInfoProto, end: onnx.ValueInfoProto
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    source = model.proto
    # Filled in place: a message given to another's constructor is copied, weights and all.
    proto = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    proto.functions.extend(source.functions)
    proto.graph.MergeFrom(onnx.GraphProto(name="segment", node=nodes, input=[start], output=[end]))
    proto.graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    return proto


def split(model: Model, anchors: dict[str, tuple[int, ...]]) -> list[Segment]:
    """The model's segments in order; the whole model as one segment where nothing can be cut.

    One segment of a model with several inputs names its first; it is fed all of them.
    """
    return list(iter_segments(model, anchors))


def iter_segments(model: Model, anchors: dict[str, tuple[int, ...]]) -> Iterator[Segment]:
    """The segments of `split` one by one: each holds a copy of its weights, and who wants one keeps one."""
    graph = model.proto.graph
    found = {cut.anchor: cut for cut in _cuts(graph) if cut.anchor in anchors}
    cuts = sorted(found.values(), key=lambda cut: cut.position)
    fed = _fed(graph)
    if not cuts:
        yield Segment(model.proto, fed[0].name if fed else "", graph.output[0].name)
        return
    constant = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output if name in constant}
    start, begin = fed[0], 0
    for cut in (*cuts, None):
        stop = len(graph.node) if cut is None else cut.position + 1
        own = [node for node in graph.node[begin:stop] if not set(node.output) <= constant]
        nodes = [*constant_nodes(own, makers), *own]
        if cut is None:
            end = graph.output[0]
        else:
            dims: list[str | int] = ["batch", *anchors[cut.anchor]]
            end = onnx.helper.make_tensor_value_info(cut.tensor, cut.element, dims)
        yield Segment(_extract(model, nodes, start, end), start.name, end.name)
        start, begin = end, stop


def _digest(proto: onnx.ModelProto) -> str:
    """SHA-256 of the model without metadata, tensor by tensor: a message over 2 GB has no bytes."""
    light = onnx.ModelProto(
        ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions
    )
    light.graph.CopyFrom(_without_weights(proto.graph))
    digest = hashlib.sha256(light.SerializeToString(deterministic=True))
    for tensor in proto.graph.initializer:
        digest.update(
            tensor_digest(tensor) if is_external(tensor) else tensor.SerializeToString(deterministic=True)
        )
    return digest.hexdigest()


def _without_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    return onnx.GraphProto(
        name=graph.name,
        node=graph.node,
        input=graph.input,
        output=graph.output,
        sparse_initializer=graph.sparse_initializer,
    )
