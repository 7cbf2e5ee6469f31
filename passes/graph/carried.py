"""What graphsurgeon 0.6 cannot hold, kept beside the graph on import and put back on export.

| in the file | in the graph |
| --- | --- |
| attribute: empty list, text that is not UTF-8, type, sparse tensor, list of tensors or graphs | left out |
| overload and device configurations of a node | left out |
| sparse initializer | a variable without a producer, which no pass takes for a constant |
| input, output or inner value that is not a plain tensor (map, optional, sequence) | without a type |

A node that lacks an attribute is masked: it has an operator and a domain that no pass knows, so that none
edits it; its inputs and outputs are real. Attributes that hold lists of graphs may not read values of the
graphs around them: graphsurgeon would not know that those are used. Such a node is the one thing that is
refused, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from passes.core.errors import GraphError

__all__ = ["free_names", "hide", "import_proto", "mask", "put_back", "unmasked"]

_KINDS = onnx.AttributeProto
_SCALARS = {_KINDS.FLOAT, _KINDS.INT, _KINDS.TENSOR, _KINDS.GRAPH}
_OP, _DOMAIN = "Carried", "ai.onnxq.carried"
# Keys of graphsurgeon's objects under which the parts of the file lie.
_NODE, _VALUE, _SPARSE = "_onnxq_node", "_onnxq_value", "_onnxq_sparse"


def _decodes(texts: Iterable[bytes]) -> bool:
    try:
        for text in texts:
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_editable(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon reads the attribute and writes the same again."""
    kind = attribute.type
    if kind in _SCALARS:
        return True
    if kind == _KINDS.STRING:
        return _decodes([attribute.s])
    if kind == _KINDS.STRINGS:
        return bool(attribute.strings) and _decodes(attribute.strings)
    return (kind == _KINDS.INTS and bool(attribute.ints)) or (
        kind == _KINDS.FLOATS and bool(attribute.floats)
    )


def _is_plain(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") in (None, "tensor_type")


def free_names(graph: onnx.GraphProto) -> set[str]:
    """Names that the graph reads and does not define: values of the graphs around it."""
    own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    read = {value.name for value in graph.output}
    for node in graph.node:
        own.update(node.output)
        read.update(node.input)
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                read |= free_names(nested)
    return read - own - {""}


@dataclass(frozen=True)
class _AttributeView:
    """A graph attribute as the importer reads it."""

    name: str
    g: _GraphView
    type: int = _KINDS.GRAPH
    ref_attr_name: str = ""


class _NodeView:
    """A node without the attributes that graphsurgeon cannot hold."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.proto = node
        self.op_type, self.name, self.domain = node.op_type, node.name, node.domain
        self.input, self.output = node.input, node.output
        self.attribute = [
            _AttributeView(held.name, _GraphView(held.g)) if held.type == _KINDS.GRAPH else held
            for held in node.attribute
            if _is_editable(held)
        ]

    def HasField(self, name: str) -> bool:  # noqa: N802 - protobuf's name
        return bool(self.proto.HasField(name))


class _GraphView:
    """A graph as the importer reads it, with plain tensors alone. Copies no weights."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.name, self.doc_string = graph.name, graph.doc_string
        self.initializer, self.sparse_initializer = graph.initializer, ()
        sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.input = [_plain(value) for value in graph.input if value.name not in sparse]
        self.output = [_plain(value) for value in graph.output]
        self.value_info = [_plain(value) for value in graph.value_info if value.name not in sparse]
        self.value_info += [
            onnx.helper.make_tensor_value_info(name, tensor.values.data_type, tensor.dims)
            for name, tensor in sparse.items()
        ]
        self.node = [_NodeView(node) for node in graph.node]


def _plain(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return value if _is_plain(value) else onnx.ValueInfoProto(name=value.name)


def import_proto(proto: onnx.ModelProto) -> gs.Graph:
    """The main graph in graphsurgeon's form, without what that cannot hold. Functions are not opened."""
    graph = OnnxImporter.import_graph(
        _GraphView(proto.graph),
        opset=OnnxImporter.get_opset(proto),
        # An edit of the list must not write through to the original model.
        import_domains=[onnx.helper.make_opsetid(o.domain, o.version) for o in proto.opset_import],
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        ir_version=proto.ir_version,
    )
    hide(graph, proto.graph)
    return graph


def hide(graph: gs.Graph, source: onnx.GraphProto) -> None:
    """Remember beside the graph what its import left out. Raises GraphError for what cannot be carried."""
    if source.sparse_initializer:
        graph.__dict__[_SPARSE] = list(source.sparse_initializer)
    for value, tensor in _values(graph, source):
        tensor.__dict__[_VALUE] = value
    for node, written in zip(graph.nodes, source.node, strict=True):
        editable = [_is_editable(attribute) for attribute in written.attribute]
        if not all(editable) or written.overload or written.device_configurations:
            _refuse_captures(written)
            node.__dict__[_NODE] = written
        for attribute in written.attribute:
            if attribute.type == _KINDS.GRAPH:
                hide(node.attrs[attribute.name], attribute.g)


def _refuse_captures(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        for nested in attribute.graphs:
            if free_names(nested):
                raise GraphError(
                    f"node '{node.name or node.output[0]}' ({node.op_type}) has a list of graphs "
                    f"'{attribute.name}' that read '{min(free_names(nested))}' of the graph around them, "
                    "which cannot be edited; make it an input of the node"
                )


def _values(graph: gs.Graph, source: onnx.GraphProto) -> Iterator[tuple[onnx.ValueInfoProto, Any]]:
    """Declarations of values that are not plain tensors, with the tensors they belong to."""
    declared = (*source.value_info, *source.input, *source.output)
    special = {value.name: value for value in declared if not _is_plain(value)}
    if special:
        known = {**graph.tensors(), **{t.name: t for t in (*graph.inputs, *graph.outputs)}}
        for name, value in special.items():
            if name in known:
                yield value, known[name]


def _masked(graph: gs.Graph) -> Iterator[tuple[gs.Node, onnx.NodeProto]]:
    for node in graph.nodes:
        written = node.__dict__.get(_NODE)
        if written is not None and not all(_is_editable(attribute) for attribute in written.attribute):
            yield node, written
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _masked(value)


def mask(graph: gs.Graph) -> None:
    """Make nodes whose attributes are incomplete ones that no pass knows."""
    for node, _ in _masked(graph):
        node.op, node.domain = _OP, _DOMAIN


@contextmanager
def unmasked(graph: gs.Graph) -> Iterator[None]:
    """Masked nodes with their own operators, for the export."""
    for node, written in _masked(graph):
        node.op, node.domain = written.op_type, written.domain if written.HasField("domain") else None
    try:
        yield
    finally:
        mask(graph)


def put_back(proto: onnx.GraphProto, graph: gs.Graph) -> None:
    """Complete an exported graph with what was kept beside `graph`, which it was exported from."""
    for written, node in zip(proto.node, graph.nodes, strict=True):
        original = node.__dict__.get(_NODE)
        if original is not None and original.op_type == written.op_type:
            if original.overload:
                written.overload = original.overload
            written.device_configurations.extend(original.device_configurations)
            _merge(written, original.attribute)
        for attribute in written.attribute:
            nested = node.attrs.get(attribute.name)
            if isinstance(nested, gs.Graph):
                put_back(attribute.g, nested)
    _put_values(proto, graph)
    sparse = graph.__dict__.get(_SPARSE, ())
    if sparse:
        proto.sparse_initializer.extend(sparse)
        names = {tensor.values.name for tensor in sparse}
        kept = [value for value in proto.value_info if value.name not in names]
        _replace(proto.value_info, kept)


def _merge(node: onnx.NodeProto, original: Sequence[onnx.AttributeProto]) -> None:
    """Attributes that were left out, back at their places among those that the graph held."""
    held = {attribute.name: attribute for attribute in node.attribute}
    merged = []
    for attribute in original:
        if not _is_editable(attribute):
            merged.append(attribute)
        elif attribute.name in held:
            merged.append(held.pop(attribute.name))
    _replace(node.attribute, [*merged, *held.values()])


def _replace(field: Any, entries: Sequence[Any]) -> None:
    """New content of a repeated field; the entries may be its own."""
    copies = []
    for entry in entries:
        copies.append(type(entry)())
        copies[-1].CopyFrom(entry)
    del field[:]
    field.extend(copies)


def _put_values(proto: onnx.GraphProto, graph: gs.Graph) -> None:
    declared: set[int] = set()
    for field, tensors in ((proto.input, graph.inputs), (proto.output, graph.outputs)):
        for value, tensor in zip(field, tensors, strict=True):
            original = tensor.__dict__.get(_VALUE)
            declared.add(id(tensor))
            if original is not None:
                value.CopyFrom(original)
                value.name = tensor.name
    for tensor in graph.tensors().values():
        original = tensor.__dict__.get(_VALUE)
        if original is not None and id(tensor) not in declared:
            proto.value_info.add().CopyFrom(original)
            proto.value_info[-1].name = tensor.name
