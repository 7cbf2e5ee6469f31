"""Shape arithmetic worked out ahead of time, with a dynamic batch left dynamic. Used by `simplify`.

Small integer tensors are followed through the graph as arrays of ints, symbols ("N") and unknowns
(None): Shape(x: [N, 3, 8, 8]) is ["N", 3, 8, 8], Gather(.., 1) of it is 3. Legality:

1. A tensor becomes a constant only where every element is a known integer.
2. A tensor that is an output of its graph is left alone.
3. Reshape(x, s) gets a constant shape when all dimensions of its result but one are known integers, or
   equal the dimension of x at the same place: a known one is written, one equal to x's is 0 (copy), the
   remaining one is -1. All known ones are positive, so that neither 0 nor -1 is ambiguous.
4. Expand(x, s) gets a constant shape when the shape of its result is known.
5. Below IR 4 nested graphs are left alone: their initializers would have to be inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.graph.editing import add_constant, is_constant, subgraphs, values
from passes.graph.inference import Dim, Types

__all__ = ["fold_shapes"]

Partial = npt.NDArray[Any]  # dtype object; elements int, str or None
_MAX_ELEMENTS = 1024
_INT_TYPES: dict[int, npt.DTypeLike] = {6: np.int32, 7: np.int64}


class _Followed:
    """Partly known integer tensors, by tensor."""

    def __init__(self, types: Types) -> None:
        self.types = types
        self._held: dict[int, tuple[Any, Partial]] = {}

    def of(self, tensor: Any) -> Partial | None:
        held = self._held.get(id(tensor))
        if held is not None:
            return held[1]
        kind = self.types.of(tensor)
        if not is_constant(tensor) or (kind is not None and kind.dtype not in _INT_TYPES):
            return None
        array = values(tensor)
        if array.dtype.kind != "i" or array.size > _MAX_ELEMENTS:
            return None
        return np.array(array.tolist(), dtype=object).reshape(array.shape)

    def put(self, tensor: Any, partial: Partial) -> None:
        self._held[id(tensor)] = (tensor, partial)


def _objects(items: Sequence[Dim]) -> Partial:
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def _shape(node: gs.Node, known: _Followed) -> Partial | None:
    shape = known.types.shape(node.inputs[0])
    if shape is None:
        return None
    return _objects(shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))])


def _gather(node: gs.Node, known: _Followed) -> Partial | None:
    data, index = (known.of(tensor) for tensor in node.inputs)
    if data is None or index is None or data.ndim != 1 or index.ndim > 1:
        return None
    if not all(isinstance(i, int) and -len(data) <= i < len(data) for i in index.reshape(-1)):
        return None
    return np.asarray(data[index.astype(np.int64)], dtype=object)


def _slice(node: gs.Node, known: _Followed) -> Partial | None:
    data = known.of(node.inputs[0])
    if len(node.inputs) == 1:
        keys = ("starts", "ends", "axes")
        bounds = [_objects(node.attrs[key]) if key in node.attrs else None for key in keys]
    else:
        given = [None if tensor.is_empty() else tensor for tensor in node.inputs[1:]]
        bounds = [None if tensor is None else known.of(tensor) for tensor in given]
        if any(part is None for part, tensor in zip(bounds, given, strict=True) if tensor is not None):
            return None
    bounds += [None] * (4 - len(bounds))
    if data is None or data.ndim != 1 or bounds[0] is None or bounds[1] is None:
        return None
    parts = [part for part in bounds if part is not None]
    if not all(part.shape == (1,) and isinstance(part[0], int) for part in parts):
        return None
    if bounds[2] is not None and bounds[2][0] not in (0, -1):
        return None
    step = 1 if bounds[3] is None else bounds[3][0]
    return data[slice(bounds[0][0], bounds[1][0], step)] if step > 0 else None


def _concat(node: gs.Node, known: _Followed) -> Partial | None:
    parts = [known.of(tensor) for tensor in node.inputs]
    found = [part for part in parts if part is not None and part.ndim == 1]
    return np.concatenate(found) if len(found) == len(parts) else None


def _same_elements(node: gs.Node, known: _Followed) -> Partial | None:
    """Unsqueeze of a scalar and Squeeze of a vector of one; the shape follows from the type."""
    data, rank = known.of(node.inputs[0]), known.types.rank(node.outputs[0])
    if data is None or data.size != 1 or rank not in (0, 1):
        return None
    return data.reshape((1,) * rank)


def _pass_on(node: gs.Node, known: _Followed) -> Partial | None:
    if node.op == "Cast" and node.attrs.get("to") not in _INT_TYPES:
        return None
    return known.of(node.inputs[0])


def _arithmetic(node: gs.Node, known: _Followed) -> Partial | None:
    left, right = (known.of(tensor) for tensor in node.inputs)
    if left is None or right is None or left.ndim > 1 or right.ndim > 1:
        return None

    def one(a: Dim, b: Dim) -> Dim:
        if isinstance(a, int) and isinstance(b, int):
            if node.op == "Div":
                return a // b if a >= 0 and b > 0 else None
            return a + b if node.op == "Add" else a - b if node.op == "Sub" else a * b
        neutral = 0 if node.op in ("Add", "Sub") else 1
        if b == neutral and isinstance(b, int):
            return a
        return b if a == neutral and isinstance(a, int) and node.op in ("Add", "Mul") else None

    try:
        a, b = np.broadcast_arrays(left, right)
    except ValueError:
        return None
    result = np.empty(a.shape, dtype=object)
    result.reshape(-1)[:] = [one(p, q) for p, q in zip(a.reshape(-1), b.reshape(-1), strict=True)]
    return result


_RULES: dict[str, Callable[[gs.Node, _Followed], Partial | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _same_elements,
    "Squeeze": _same_elements,
    "Identity": _pass_on,
    "Cast": _pass_on,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
}


def _reshape_target(node: gs.Node, known: _Followed) -> list[int] | None:
    """A constant shape that means the same as the computed one (rule 3)."""
    out, source = known.types.shape(node.outputs[0]), known.types.shape(node.inputs[0])
    partial = known.of(node.inputs[1])
    if out is None and partial is not None and partial.ndim == 1:
        out = (None,) * len(partial)
    if out is None:
        return None
    target: list[int] = []
    for index, dim in enumerate(out):
        if not isinstance(dim, int) and partial is not None and len(partial) == len(out):
            told = partial[index]
            dim = told if isinstance(told, str) or (isinstance(told, int) and told > 0) else dim
        if isinstance(dim, int):
            target.append(dim)
        elif isinstance(dim, str) and source is not None and index < len(source) and source[index] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _fix_target(graph: gs.Graph, node: gs.Node, known: _Followed) -> bool:
    """Replace a computed shape of Reshape or Expand by a constant one."""
    if len(node.inputs) < 2 or is_constant(node.inputs[1]):
        return False
    if node.op == "Reshape":
        target = _reshape_target(node, known)
    else:
        kind = known.types.of(node.outputs[0])
        target = list(kind.static) if kind is not None and kind.static is not None else None
    if target is None:
        return False
    node.inputs[1] = add_constant(graph, f"{node.outputs[0].name}_shape", np.array(target, np.int64))
    node.attrs.pop("allowzero", None)
    return True


def _fold(top: gs.Graph, graph: gs.Graph, known: _Followed) -> bool:
    changed = False
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        if node.domain not in (None, "", "ai.onnx") or not node.outputs:
            continue
        if node.op in ("Reshape", "Expand"):
            changed |= _fix_target(top, node, known)
            continue
        rule = _RULES.get(node.op)
        partial = rule(node, known) if rule else None
        if partial is None or partial.size > _MAX_ELEMENTS:
            continue
        tensor = node.outputs[0]
        known.put(tensor, partial)
        if id(tensor) in outputs or not all(isinstance(item, int) for item in partial.reshape(-1)):
            continue
        kind = known.types.of(tensor)
        if kind is None or kind.dtype not in _INT_TYPES:
            continue
        tensor.inputs.clear()
        tensor.to_constant(partial.astype(_INT_TYPES[kind.dtype]))
        changed = True
    if changed:
        graph.nodes = [node for node in graph.nodes if node.outputs]
    return changed


def fold_shapes(graph: gs.Graph, types: Types) -> bool:
    """Turn known shape arithmetic into constants, subgraphs included; True if anything changed."""
    known = _Followed(types)
    changed = False
    for current, path in list(subgraphs(graph)):
        if not path or (graph.ir_version or 4) >= 4:
            changed |= _fold(graph, current, known)
    return changed
