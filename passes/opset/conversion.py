"""The walk over a model's graphs and functions that converts each node to another opset, in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto

from passes.graph.boundary import node_name
from passes.graph.inference import infer_model
from passes.graph.model import every_graph
from passes.opset.adapters import ADAPTERS
from passes.opset.runtime import lacks_kernel
from passes.opset.schemas import STANDARD, is_operator, lost, transitions
from passes.opset.site import Names, RefusedError, Scope, Site

__all__ = [
    "ConversionError",
    "Walk",
    "convert",
    "convert_functions",
    "every_node",
    "name_nodes",
    "names_of",
    "opset_of",
    "set_opset",
]


class ConversionError(Exception):
    """Names the node that cannot be converted, and why. in_function: whether it belongs to a function."""

    def __init__(self, reason: str, in_function: bool = False) -> None:
        super().__init__(reason)
        self.in_function = in_function


def opset_of(proto: onnx.ModelProto | onnx.FunctionProto) -> int:
    """Opset of the standard operators; 0 where none is imported."""
    return max((entry.version for entry in proto.opset_import if entry.domain in STANDARD), default=0)


def set_opset(proto: onnx.ModelProto | onnx.FunctionProto, version: int) -> None:
    """Import that opset of the standard operators, in the place of the import that is there."""
    entry = next((entry for entry in proto.opset_import if entry.domain in STANDARD), None)
    (entry or proto.opset_import.add()).version = version


def _nested(node: onnx.NodeProto) -> Iterator[tuple[AttributeProto, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield attribute, graph


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of the graphs nested in them."""
    for node in nodes:
        yield node
        for _, graph in _nested(node):
            yield from every_node(graph.node)


def _all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from every_node(proto.graph.node)
    for function in proto.functions:
        yield from every_node(function.node)


def names_of(proto: onnx.ModelProto) -> Names:
    """All names of the model, so that a new one is new everywhere."""
    taken = {name for node in _all_nodes(proto) for name in (node.name, *node.input, *node.output)}
    for graph in every_graph(proto.graph):
        taken.update(value.name for value in (*graph.input, *graph.output, *graph.value_info))
        taken.update(tensor.name for tensor in graph.initializer)
    for function in proto.functions:
        taken.update((*function.input, *function.output))
    return Names(taken)


def _read(proto: onnx.ModelProto) -> set[str]:
    """Names of the values that a node reads or that a graph or function gives."""
    names = {name for node in _all_nodes(proto) for name in node.input}
    for graph in every_graph(proto.graph):
        names.update(value.name for value in graph.output)
    for function in proto.functions:
        names.update(function.output)
    return names - {""}


def _scope(
    graph: onnx.GraphProto, inferred: onnx.GraphProto | None, parent: Scope | None, read: set[str]
) -> Scope:
    scope = Scope(read=read, parent=parent)
    for known in (inferred, graph):
        if known is not None:
            for value in (*known.value_info, *known.input, *known.output):
                if value.type.WhichOneof("value"):
                    scope.types.setdefault(value.name, value.type)
    fed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        shape = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        scope.types.setdefault(tensor.name, shape)
        if tensor.name not in fed:
            scope.constants[tensor.name] = tensor
    for node in graph.node:
        _know_constant(scope, node)
    return scope


def _know_constant(scope: Scope, node: onnx.NodeProto) -> None:
    if node.op_type == "Constant" and node.domain in STANDARD:
        for attribute in node.attribute:
            if attribute.name == "value" and not attribute.ref_attr_name:
                scope.constants[node.output[0]] = attribute.t


@dataclass
class Walk:
    """Converts the nodes of one model up to opset `target`."""

    target: int
    names: Names

    def node(
        self, node: onnx.NodeProto, level: int, scope: Scope
    ) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        """Convert a node of opset `level`; returns the new nodes in front of it and behind it."""
        if node.domain not in STANDARD:
            return [], []
        if not is_operator(node.op_type, level):
            raise RefusedError(f"ONNX has no such operator at opset {level}")
        steps = transitions(node.op_type, level, self.target)
        if steps and not steps[-1][1].deprecated and lacks_kernel(steps[0][0], steps[-1][1]):
            version = steps[-1][1].since_version
            raise RefusedError(f"the installed ONNX Runtime has no kernel for it from opset {version} on")
        for older, newer in steps:
            version = newer.since_version
            adapter = ADAPTERS.get((node.op_type, version))
            if adapter is None:
                reason = lost(node, older, newer, scope.element)
                if reason:
                    raise RefusedError(f"{reason}, which opset {version} does not have")
                continue
            site = Site(node, scope, self.names)
            adapter(site)
            for added in site.before:
                _know_constant(scope, added)
            inner = self.node(node, version, scope)
            before = [*self._all(site.before, version, scope), *inner[0]]
            return before, [*inner[1], *self._all(site.after, version, scope)]
        return [], []

    def _all(self, nodes: list[onnx.NodeProto], level: int, scope: Scope) -> list[onnx.NodeProto]:
        converted: list[onnx.NodeProto] = []
        for node in nodes:
            before, after = self.node(node, level, scope)
            converted += [*before, node, *after]
        return converted

    def graph(
        self,
        graph: onnx.GraphProto | onnx.FunctionProto,
        level: int,
        scope: Scope,
        inferred: onnx.GraphProto | None,
        in_function: bool = False,
    ) -> None:
        """Convert all nodes of the graph, nested ones first. inferred: the same graph with types."""
        inside = in_function or isinstance(graph, onnx.FunctionProto)
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            twins = list(_nested(inferred.node[index])) if inferred is not None else []
            for place, (_, nested) in enumerate(_nested(node)):
                twin = twins[place][1] if place < len(twins) else None
                self.graph(nested, level, _scope(nested, twin, scope, scope.read), twin, inside)
            try:
                before, after = self.node(node, level, scope)
            except RefusedError as refused:
                named = f"node '{node.name}' ({node.op_type})" if node.name else f"a node {node.op_type}"
                raise ConversionError(f"{named}: {refused}", inside) from None
            for offset, added in enumerate(after):
                graph.node.insert(index + 1 + offset, added)
            for offset, added in enumerate(before):
                graph.node.insert(index + offset, added)


def convert(proto: onnx.ModelProto, walk: Walk) -> None:
    """Convert graphs and functions of the model, in place, to the opset of `walk`, and import it.

    Raises ConversionError; the model is then half converted, and of no use.
    """
    read = _read(proto)
    inferred = infer_model(proto)[0]
    walk.graph(proto.graph, opset_of(proto), _scope(proto.graph, inferred, None, read), inferred)
    convert_functions(proto, proto.functions, walk)
    set_opset(proto, walk.target)


def convert_functions(proto: onnx.ModelProto, functions: Iterable[onnx.FunctionProto], walk: Walk) -> None:
    """Convert these functions of the model, in place. Raises ConversionError."""
    read = _read(proto)
    for function in functions:
        scope = Scope(read=read)
        for node in function.node:
            _know_constant(scope, node)
        walk.graph(function, opset_of(function), scope, None)
        set_opset(function, walk.target)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Write the names by which passes know unnamed nodes, which depend on positions, into the nodes."""

    def visit(graph: onnx.GraphProto, prefix: str) -> None:
        for index, node in enumerate(graph.node):
            node.name = node_name(node.name, f"{prefix}{node.op_type}_{index}", named, seen)
            seen.add(node.name)
            for attribute, nested in _nested(node):
                visit(nested, f"{node.name}/{attribute.name}/")

    named = {node.name for node in every_node(proto.graph.node) if node.name}
    seen: set[str] = set()
    visit(proto.graph, "")
