"""Which model-local functions of a model hold layers."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from passes.graph.layers import LAYER_OPS
from runtime_ops.functions import DOMAIN

__all__ = ["Key", "LayerSearch", "called", "function_key", "functions_with_layers"]

Key = tuple[str, str, str]
_STANDARD = ("", "ai.onnx")


def called(node: onnx.NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def function_key(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


class LayerSearch:
    """One walk over a model's calls, with what is constant at each."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.functions = {function_key(held): held for held in proto.functions if held.domain != DOMAIN}
        self.holding: dict[Key, onnx.FunctionProto] = {}
        self._seen: dict[tuple[Key, tuple[bool, ...]], bool] = {}
        self._walk(proto.graph.node, _initializers(proto.graph))

    def _walk(self, nodes: Iterable[onnx.NodeProto], constant: set[str]) -> bool:
        """Whether the nodes hold a layer; adds to `constant` the names that they work out of constants."""
        holds = False
        for node in nodes:
            holds |= _is_layer(node, constant) or self._call(node, constant)
            graphs = [g for attribute in node.attribute for g in (attribute.g, *attribute.graphs)]
            for graph in graphs:
                holds |= self._walk(graph.node, constant | _initializers(graph))
            if all(name in constant for name in node.input if name):
                constant.update(node.output)
        return holds

    def _call(self, node: onnx.NodeProto, constant: set[str]) -> bool:
        function = self.functions.get(called(node))
        if function is None:
            return False
        given = tuple(name in constant for name in node.input)
        call = (called(node), given)
        if call not in self._seen:
            self._seen[call] = False  # a function that calls itself is none that ONNX allows
            known = {name for name, held in zip(function.input, given, strict=False) if held}
            self._seen[call] = self._walk(function.node, known)
        if self._seen[call]:
            self.holding[called(node)] = function
        return self._seen[call]


def _initializers(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


def _is_layer(node: onnx.NodeProto, constant: set[str]) -> bool:
    if node.op_type not in LAYER_OPS or node.domain not in _STANDARD or len(node.input) < 2:
        return False
    weights = [name in constant for name in node.input[:2]]
    return weights == [False, True] or (node.op_type == "MatMul" and weights == [True, False])


def functions_with_layers(proto: onnx.ModelProto) -> list[str]:
    """Names (`domain::name`) of the model-local functions that hold layers."""
    holding = LayerSearch(proto).holding if proto.functions else ()
    return sorted({f"{domain}::{name}" for domain, name, _ in holding})
