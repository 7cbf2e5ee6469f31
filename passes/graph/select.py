"""Selectors: how a person names layers.

`NAME` exact, glob (`*/conv_dw*`), `op:Conv`, `depthwise`, `first`, `first:2`, `last`, `all`,
`between:TENSOR..TENSOR` (every layer on a path from the first tensor to the second), `re:REGEX`.
A selector that matches nothing is an error that lists near names.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

import onnx_graphsurgeon as gs

from passes.core.errors import SelectorError
from passes.graph.boundary import import_graph
from passes.graph.layers import Layer, graph_layers
from passes.graph.model import Model

__all__ = ["select", "select_layers"]

Found = Sequence[tuple[Layer, gs.Node, gs.Graph]]


def _reach(start: gs.Tensor, step: Callable[[gs.Node], Iterable[gs.Tensor]], ends: str) -> set[int]:
    """Nodes reachable from a tensor, each visited once, so that diamonds cost linear time."""
    seen: set[int] = set()
    stack: list[gs.Node] = list(getattr(start, ends))
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for tensor in step(node):
            stack.extend(getattr(tensor, ends))
    return seen


def _between(graph: gs.Graph, body: str, found: Found, selector: str) -> list[Layer]:
    first, separator, last = body.partition("..")
    tensors = graph.tensors()
    for name in (first, last):
        if not separator or name not in tensors:
            near = difflib.get_close_matches(name, list(tensors), n=3, cutoff=0.3)
            raise SelectorError(
                f"selector '{selector}': no tensor '{name}'; write between:TENSOR..TENSOR"
                + (f", near names: {', '.join(near)}" if near else "")
            )
    forward = _reach(tensors[first], lambda node: node.outputs, "outputs")
    backward = _reach(tensors[last], lambda node: node.inputs, "inputs")
    return [layer for layer, node, _ in found if id(node) in forward and id(node) in backward]


def _match(selector: str, graph: gs.Graph, found: Found) -> list[Layer]:
    layers = [layer for layer, _, _ in found]
    kind, _, body = selector.partition(":")
    if selector == "all":
        return layers
    if selector == "depthwise":
        return [layer for layer in layers if layer.depthwise]
    if kind in ("first", "last") and (not body or body.isdigit()):
        count = int(body or 1)
        return layers[:count] if kind == "first" else layers[max(len(layers) - count, 0) :]
    if kind == "op":
        return [layer for layer in layers if layer.op == body]
    if kind == "between":
        return _between(graph, body, found, selector)
    if kind == "re":
        try:
            return [layer for layer in layers if re.search(body, layer.name)]
        except re.error as error:
            raise SelectorError(f"selector '{selector}': is not a regular expression ({error})") from None
    exact = [layer for layer in layers if layer.name == selector]
    return exact or [layer for layer in layers if fnmatch.fnmatchcase(layer.name, selector)]


def select(graph: gs.Graph, selectors: Iterable[str], found: Found | None = None) -> list[Layer]:
    """Layers that any of the selectors names, in graph order.

    Raises SelectorError for a selector that matches nothing.
    """
    found = graph_layers(graph) if found is None else found
    chosen: set[str] = set()
    for selector in selectors:
        matched = _match(selector, graph, found)
        if not matched:
            names = [layer.name for layer, _, _ in found]
            near = difflib.get_close_matches(selector, names, n=3, cutoff=0.3) or names[:3]
            hint = f"; near names: {', '.join(near)}" if near else "; the model has no quantizable layer"
            raise SelectorError(f"selector '{selector}' matches no layer{hint}")
        chosen.update(layer.name for layer in matched)
    return [layer for layer, _, _ in found if layer.name in chosen]


def select_layers(model: Model, selectors: Iterable[str]) -> list[Layer]:
    """`select` on a model."""
    return select(import_graph(model), selectors)
