"""What graphsurgeon loses of a graph: doc strings, metadata_props and denotations, in nested graphs too.

Values and initializers are found again by their names, nodes by operator and first output, or by operator
and name if they write another tensor now. What a pass changed keeps its annotations while it is of the same
kind (operator; element type and rank).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

__all__ = ["carry_annotations"]

_Described = onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.GraphProto


def _describe(new: _Described, old: _Described) -> None:
    if old.doc_string and not new.doc_string:  # an empty string that is set is written into the file
        new.doc_string = old.doc_string
    if not new.metadata_props:
        new.metadata_props.extend(old.metadata_props)


def _carry_type(new: onnx.TypeProto, old: onnx.TypeProto) -> None:
    if old.denotation:
        new.denotation = old.denotation
    kind = new.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        sides = zip(getattr(new, kind).shape.dim, getattr(old, kind).shape.dim, strict=False)
        for side, before in sides:
            if before.denotation:
                side.denotation = before.denotation
    elif kind in ("sequence_type", "optional_type"):
        _carry_type(getattr(new, kind).elem_type, getattr(old, kind).elem_type)


def _same_kind(new: onnx.TypeProto, old: onnx.TypeProto) -> bool:
    kind = new.WhichOneof("value")
    if kind != old.WhichOneof("value"):
        return False
    if kind != "tensor_type":
        return True
    a, b = new.tensor_type, old.tensor_type
    return a.elem_type == b.elem_type and len(a.shape.dim) == len(b.shape.dim)


def _carry_values(new: Iterable[onnx.ValueInfoProto], old: dict[str, onnx.ValueInfoProto]) -> None:
    for value in new:
        before = old.get(value.name)
        if before is not None and _same_kind(value.type, before.type):
            _describe(value, before)
            _carry_type(value.type, before.type)


def _nested(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g


def _carry_node(new: onnx.NodeProto, old: onnx.NodeProto) -> None:
    _describe(new, old)
    if not new.device_configurations:
        new.device_configurations.extend(old.device_configurations)
    documented = {attribute.name: attribute.doc_string for attribute in old.attribute if attribute.doc_string}
    for attribute in new.attribute:
        if attribute.name in documented:
            attribute.doc_string = documented[attribute.name]
    graphs = dict(_nested(old))
    for name, graph in _nested(new):
        if name in graphs:
            carry_annotations(graph, graphs[name])


def carry_annotations(new: onnx.GraphProto, old: onnx.GraphProto) -> None:
    """Give what is left in the exported graph `new` the annotations of `old`, from which it was imported."""
    _describe(new, old)
    if not new.quantization_annotation:
        new.quantization_annotation.extend(old.quantization_annotation)
    declared = {value.name: value for value in (*old.value_info, *old.input, *old.output)}
    _carry_values((*new.value_info, *new.input, *new.output), declared)
    annotated = {t.name: t for t in old.initializer if t.doc_string or t.metadata_props}
    for tensor in new.initializer:
        before = annotated.get(tensor.name)
        if (
            before is not None
            and before.data_type == tensor.data_type
            and len(before.dims) == len(tensor.dims)
        ):
            _describe(tensor, before)
    by_output = {(node.op_type, node.output[0]): node for node in old.node if node.output}
    by_name = {(node.op_type, node.name): node for node in old.node if node.name}
    for node in new.node:
        known = by_output.get((node.op_type, node.output[0])) if node.output else None
        known = known or by_name.get((node.op_type, node.name))
        if known is not None:
            _carry_node(node, known)
