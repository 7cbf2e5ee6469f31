"""Nodes that hand their first input on unchanged, and how to take them out. Used by `simplify`.

Legality of removing y = op(x):

1. The op is the identity for every input: shapes and dtypes come from inference; where they are not
   known, it stays. Arithmetic with a neutral constant must not broadcast x to something larger.
2. y, when an output of the graph, keeps its name: the producer of x then writes y instead. That needs x
   to be made by a node of the same graph and not to be an output itself. Otherwise the node stays, as
   an Identity (an output may not be an input or an initializer directly).
3. Other outputs of the node (Dropout's mask) are unused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.graph.editing import consumers, is_constant, replace_uses, values
from passes.graph.inference import Types

__all__ = ["is_noop", "pass_through", "remove_noops"]

_FAR = 2**31 - 1  # exporters write this, or anything above, for "to the end"


def _constant(node: gs.Node, index: int) -> npt.NDArray[Any] | None:
    """Value of an input: an empty array where it is omitted, None where it is not constant."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return np.empty(0)
    return values(node.inputs[index]) if is_constant(node.inputs[index]) else None


def _dropout(node: gs.Node, _: Types) -> int | None:
    if any(not t.is_empty() and t.outputs for t in node.outputs[1:]):
        return None
    training = _constant(node, 2)
    return None if training is None or training.any() else 0


def _cast(node: gs.Node, types: Types) -> int | None:
    kind = types.of(node.inputs[0])
    return 0 if kind is not None and kind.dtype == node.attrs.get("to") else None


def _reshape(node: gs.Node, types: Types) -> int | None:
    shape, target = types.shape(node.inputs[0]), _constant(node, 1)
    if shape is None or target is None or target.ndim != 1 or len(target) != len(shape):
        return None
    free = 0
    for dim, wanted in zip(shape, target.tolist(), strict=True):
        if (wanted == 0 and not node.attrs.get("allowzero", 0)) or (dim == wanted and wanted > 0):
            continue
        if wanted != -1:
            return None
        free += 1  # all others being equal, the element count makes this one equal too
    return 0 if free <= 1 else None


def _flatten(node: gs.Node, types: Types) -> int | None:
    return 0 if types.rank(node.inputs[0]) == 2 and node.attrs.get("axis", 1) in (1, -1) else None


def _transpose(node: gs.Node, types: Types) -> int | None:
    perm = node.attrs.get("perm")
    if perm is None:
        return 0 if types.rank(node.inputs[0]) in (0, 1) else None
    return 0 if list(perm) == list(range(len(perm))) else None


def _pad(node: gs.Node, _: Types) -> int | None:
    pads = np.array(node.attrs["pads"]) if "pads" in node.attrs else _constant(node, 1)
    return 0 if pads is not None and pads.size and not pads.any() else None


def _slice(node: gs.Node, types: Types) -> int | None:
    if "starts" in node.attrs:
        starts, ends = np.array(node.attrs["starts"]), np.array(node.attrs["ends"])
        axes: npt.NDArray[Any] | None = np.array(node.attrs.get("axes", []))
        steps: npt.NDArray[Any] | None = np.empty(0)
    else:
        first, last = _constant(node, 1), _constant(node, 2)
        axes, steps = _constant(node, 3), _constant(node, 4)
        if first is None or last is None:
            return None
        starts, ends = first, last
    if axes is None or steps is None or starts.any() or (steps.size and (steps != 1).any()):
        return None
    shape = types.shape(node.inputs[0])
    chosen = axes.tolist() if axes.size else list(range(len(ends)))
    for axis, end in zip(chosen, ends.tolist(), strict=True):
        dim = None if shape is None else shape[axis]
        if not (end >= _FAR or (isinstance(dim, int) and end >= dim)):
            return None
    return 0


def _single(node: gs.Node, _: Types) -> int | None:
    return 0 if len(node.inputs) == 1 else None


def _tile(node: gs.Node, _: Types) -> int | None:
    repeats = _constant(node, 1)
    return 0 if repeats is not None and repeats.size and (repeats == 1).all() else None


def _expand(node: gs.Node, types: Types) -> int | None:
    before, after = types.shape(node.inputs[0]), types.of(node.outputs[0])
    if after is not None and after.static is not None and after.static == before:
        return 0
    target = _constant(node, 1)
    ones = target is not None and target.size and (target == 1).all()
    return 0 if target is not None and ones and before is not None and len(target) <= len(before) else None


def _neutral(node: gs.Node, types: Types) -> int | None:
    """x*1, 1*x, x/1, x+0, 0+x, x-0, x**1, where the constant does not enlarge x."""
    wanted = 0 if node.op in ("Add", "Sub") else 1
    for index in (1, 0) if node.op in ("Add", "Mul") else (1,):
        other, kept = node.inputs[index], node.inputs[1 - index]
        if not is_constant(other) or is_constant(kept):
            continue
        array, shape, kinds = values(other), types.shape(kept), (types.of(other), types.of(kept))
        if array.dtype.kind not in "fiu" or array.size == 0 or not (array == wanted).all():
            continue
        if None in kinds or kinds[0].dtype != kinds[1].dtype:  # type: ignore[union-attr]
            continue
        if array.ndim and (shape is None or array.ndim > len(shape)):
            continue
        tail = () if shape is None or not array.ndim else shape[-array.ndim :]
        if all(size in (1, dim) for size, dim in zip(array.shape, tail, strict=True)):
            return 1 - index
    return None


_RULES: dict[str, Callable[[gs.Node, Types], int | None]] = {
    "Identity": _single,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mean": _single,
    "Tile": _tile,
    "Expand": _expand,
    "Add": _neutral,
    "Sub": _neutral,
    "Mul": _neutral,
    "Div": _neutral,
    "Pow": _neutral,
}


def is_noop(node: gs.Node, types: Types) -> int | None:
    """Index of the input that the node hands on unchanged; None when it does something."""
    rule = _RULES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
    return rule(node, types) if rule else None


def pass_through(graph: gs.Graph, node: gs.Node, source: Any, own: set[int], outputs: set[int]) -> bool:
    """Take the node out: readers of its first output read `source`. False where rule 2 forbids it.

    own, outputs: ids of the graph's nodes and of its outputs.
    """
    target = node.outputs[0]
    if id(target) not in outputs:
        node.outputs.clear()
        node.inputs.clear()
        replace_uses(graph, target, source, only=consumers(target))
        return True
    maker = source.inputs[0] if len(source.inputs) == 1 else None
    if maker is None or id(maker) not in own or id(source) in outputs:
        return False
    node.outputs.clear()
    node.inputs.clear()
    replace_uses(graph, source, target, only=consumers(source))
    slot = next(index for index, tensor in enumerate(maker.outputs) if tensor is source)
    maker.outputs[slot] = target
    return True


def remove_noops(graph: gs.Graph, types: Types) -> list[str]:
    """Remove every no-op of one graph (not of its subgraphs); the names of the nodes removed."""
    removed: list[str] = []
    own, outputs = {id(node) for node in graph.nodes}, {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        index = is_noop(node, types) if node.outputs else None
        if index is not None and pass_through(graph, node, node.inputs[index], own, outputs):
            removed.append(node.name)
    if removed:
        graph.nodes = [node for node in graph.nodes if node.outputs]
    return removed
