"""'ai.onnx', the alias of '' for the standard operators, is written as '' once, when a model comes in.

The checker takes the alias in imports only, ONNX Runtime in nodes too, and most tools nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from passes.core.errors import InvalidModelError

__all__ = ["has_alias", "write_out_alias"]

_ALIAS = "ai.onnx"


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of functions and of nested graphs included, without recursion."""
    waiting = [proto.graph.node, *(function.node for function in proto.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append(attribute.g.node)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    waiting.extend(graph.node for graph in attribute.graphs)


def has_alias(proto: onnx.ModelProto) -> bool:
    """Whether any import or node of the model is spelled with the alias."""
    holders = (proto, *proto.functions)
    imported = any(entry.domain == _ALIAS for holder in holders for entry in holder.opset_import)
    return imported or any(node.domain == _ALIAS for node in _nodes(proto))


def write_out_alias(proto: onnx.ModelProto, name: str) -> None:
    """Write the alias out, in place, and import every operator set once.

    Raises InvalidModelError for two versions of one set: the checker obeys '', ONNX Runtime the last of them.
    """
    for holder in (proto, *proto.functions):
        label = f"{name}: function '{holder.name}'" if isinstance(holder, onnx.FunctionProto) else name
        versions: dict[str, int] = {}
        for entry in holder.opset_import:
            domain = "" if entry.domain == _ALIAS else entry.domain
            if versions.setdefault(domain, entry.version) != entry.version:
                raise InvalidModelError(
                    f"{label}: imports the operator set '{domain or _ALIAS}' twice, at versions "
                    f"{versions[domain]} and {entry.version}; export the model again"
                )
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
        if list(holder.opset_import) != imports:
            del holder.opset_import[:]
            holder.opset_import.extend(imports)
    for node in _nodes(proto):
        if node.domain == _ALIAS:
            node.domain = ""
