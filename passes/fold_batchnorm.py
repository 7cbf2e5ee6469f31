"""`fold_batchnorm`: BatchNormalization, at run time y = a*x + b per channel, goes into its neighbours.

    a = scale / sqrt(var + epsilon),  b = shift - mean * a,  all [C], channels are axis 1 of x

Tried in this order (the maths of merging, and what it refuses, is in passes/folding/affine.py):
 1. into the Conv, ConvTranspose, Gemm or MatMul that makes x;
 2. into every Conv, Gemm or MatMul that reads y;
 3. standalone=depthwise: the BatchNormalization becomes a depthwise 1x1 Conv with weight a and bias b.

Legality:
 1. It is in inference mode: no training_mode, no further outputs, spatial = 1; its parameters are constant.
 2. var + epsilon > 0 in every channel, and a and b are finite.
 3. Merging into the maker of x: nothing else reads x, and x is no output of the graph.
 4. Merging into the readers of y: y is no output, all its readers can take it, each through its data
    input only, and they stand in the same graph.
 5. Depthwise: x is float32 of known rank 3 to 5 (other types have no Conv kernel in every runtime).
 6. Below IR 4 nested graphs are left alone: their initializers would have to be inputs.

fold_affine=true merges, by rule 3, Mul, Add, Sub and Div by constants that are exactly per channel (or
scalar) as well. It is off because `smooth` inserts such a Mul on purpose.

7. A weight that other nodes read too is not copied, unless that is cheaper than the map: all its readers must
   have the same map merged into them, and then share the result.

Weights are never changed in place. What is refused is noted with its node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.core.base import Context, RepeatedPass, register
from passes.folding.affine import WEIGHTED, Affine, merge_before, merge_behind
from passes.graph.editing import add_shared, consumers, is_constant, subgraphs, values
from passes.graph.inference import Types, infer_types

__all__ = ["FoldBatchNorm"]

_STANDARD = (None, "", "ai.onnx")
_NODE_BYTES = 50
_AFFINE_OPS = ("Mul", "Add", "Sub", "Div")


def _batchnorm_map(node: gs.Node) -> Affine | str:
    """The affine map of a BatchNormalization, or why it is none (rules 1 and 2)."""
    if node.attrs.get("training_mode", 0):
        return "it is in training mode"
    if any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return "it makes running statistics, so it is in training mode"
    if node.attrs.get("spatial", 1) != 1:
        return "it normalizes each position on its own (spatial=0)"
    if not all(is_constant(tensor) for tensor in node.inputs[1:5]):
        return "its parameters are not constant"
    scale, shift, mean, var = (values(tensor).astype(np.float64) for tensor in node.inputs[1:5])
    # The attribute is float32; in float64 its exact value is meant.
    variance = var + float(np.float32(node.attrs.get("epsilon", 1e-5)))
    bad = np.flatnonzero(~(variance > 0))
    if bad.size:
        return f"variance + epsilon is {variance[bad[0]]:g} in channel {bad[0]}, so its result is not finite"
    a = scale / np.sqrt(variance)
    b = shift - mean * a
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return "its parameters are not finite"
    return Affine(a, b)


def _bytes_gone(node: gs.Node) -> int:
    """What removing a node takes from the file: itself, about, and constants that it alone reads."""
    own = (tensor for tensor in node.inputs if is_constant(tensor) and len(consumers(tensor)) == 1)
    return _NODE_BYTES + sum(values(tensor).nbytes for tensor in own)


def _equal(one: Affine, other: Affine) -> bool:
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.shift, other.shift)


def _constant_map(node: gs.Node, types: Types) -> tuple[Any, Affine] | None:
    """Data input and map of a Mul, Add, Sub or Div by a per-channel constant; None when it is none."""
    for index in (1, 0) if node.op in ("Mul", "Add") else (1,):
        factor, data = node.inputs[index], node.inputs[1 - index]
        rank = types.rank(data)
        maker = data.inputs[0] if len(data.inputs) == 1 else None
        if not is_constant(factor) or maker is None or maker.op not in WEIGHTED or rank is None or rank < 2:
            continue
        array = values(factor).astype(np.float64)
        shape = (1,) * (rank - array.ndim) + array.shape
        channels = types.shape(data)[1]  # type: ignore[index]
        if len(shape) != rank or not isinstance(channels, int):
            continue
        if any(dim != 1 for axis, dim in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
            continue
        vector = np.broadcast_to(array.reshape(-1), channels)
        ones, zeros = np.ones(channels), np.zeros(channels)
        if node.op == "Div" and not vector.all():
            continue
        if node.op in ("Mul", "Div"):
            return data, Affine(vector if node.op == "Mul" else 1.0 / vector, zeros)
        return data, Affine(ones, vector if node.op == "Add" else -vector)
    return None


@dataclass
class _Folder:
    """Folding inside one graph (the top one, or a nested one)."""

    top: gs.Graph
    graph: gs.Graph
    types: Types
    context: Context

    def __post_init__(self) -> None:
        self.own = {id(node) for node in self.graph.nodes}
        self.outputs = {id(tensor) for tensor in self.graph.outputs}

    def _constant(self, hint: str, array: npt.NDArray[Any]) -> gs.Constant:
        return add_shared(self.top, hint, array)

    def _map_behind(self, node: gs.Node) -> tuple[Affine, Any] | None:
        """The only reader of a node's result as a map, where it can be merged, and its output."""
        data = node.outputs[0]
        readers = consumers(data)
        if id(node) not in self.own or id(data) in self.outputs or len(data.outputs) != 1:
            return None
        found = _batchnorm_map(readers[0]) if readers[0].op == "BatchNormalization" else "another operator"
        return None if isinstance(found, str) else (found, readers[0])

    def _copies(self, maker: gs.Node, affine: Affine) -> str | None:
        """Why merging a map behind `maker` would copy its weight (rule 7); None where it would not."""
        for other in consumers(maker.inputs[1]):
            if other is maker:
                continue
            found = self._map_behind(other)
            same = found is not None and other.op == maker.op and other.inputs[1] is maker.inputs[1]
            if found is None or not same or not _equal(found[0], affine):
                size, gone = values(maker.inputs[1]).nbytes, _bytes_gone(consumers(maker.outputs[0])[0])
                if size <= gone:
                    return None
                return f"its weight is also read by '{other.name}', and a copy would take {size} bytes"
        return None

    def behind(self, node: gs.Node, data: Any, affine: Affine) -> str | None:
        """Merge `node` into the maker of its data; None when done, else the reason."""
        maker = data.inputs[0] if len(data.inputs) == 1 else None
        if maker is None or id(maker) not in self.own:
            return "nothing in this graph makes its input"
        if maker.op not in WEIGHTED or maker.domain not in _STANDARD:
            return f"its input comes from {maker.op} '{maker.name}'"
        if id(data) in self.outputs:
            return f"the result of '{maker.name}' is an output of the graph"
        if len(data.outputs) != 1:
            others = [reader.name for reader in consumers(data) if reader is not node]
            return f"the result of '{maker.name}' is also read by '{(others or [node.name])[0]}'"
        merged = merge_behind(maker, affine, self.types)
        copied = self._copies(maker, affine) if not isinstance(merged, str) else merged
        if isinstance(merged, str) or copied is not None:
            return f"'{maker.name}' ({maker.op}): {copied}"
        merged.apply(maker, self._constant)
        target = node.outputs[0]
        if node.op == "BatchNormalization":
            scale, shift = (values(tensor).astype(np.float64) for tensor in node.inputs[1:3])
            self.context.distributions[target.name] = (shift, np.abs(scale))
        self._remove(node)
        maker.outputs[0] = target
        return None

    def before(self, node: gs.Node, affine: Affine) -> str | None:
        """Merge `node` into all that read it; None when done, else the reason."""
        target, source = node.outputs[0], node.inputs[0]
        readers = consumers(target)
        if id(target) in self.outputs:
            return "its result is an output of the graph"
        if not readers:
            return "nothing reads it"
        merged = []
        for reader in readers:
            if id(reader) not in self.own or reader.op not in WEIGHTED or reader.domain not in _STANDARD:
                return f"it is read by {reader.op} '{reader.name}'"
            if reader.inputs[0] is not target or any(tensor is target for tensor in reader.inputs[1:]):
                return f"'{reader.name}' reads it as a weight"
            found = merge_before(reader, affine, self.types)
            if isinstance(found, str):
                return f"'{reader.name}' ({reader.op}): {found}"
            others = [item for item in consumers(reader.inputs[1]) if not any(item is r for r in readers)]
            if others:
                return (
                    f"the weight of '{reader.name}' is also read by '{others[0].name}', and would be copied"
                )
            merged.append(found)
        for reader, found in zip(readers, merged, strict=True):
            found.apply(reader, self._constant)
            reader.inputs[0] = source
        self._remove(node)
        return None

    def depthwise(self, node: gs.Node, affine: Affine) -> str | None:
        """Turn `node` into a depthwise 1x1 Conv; None when done, else the reason."""
        kind = self.types.of(node.inputs[0])
        rank = None if kind is None or kind.shape is None else len(kind.shape)
        if kind is None or rank is None:
            return "the rank of its input is unknown"
        if rank not in (3, 4, 5) or kind.dtype != onnx.TensorProto.FLOAT:
            return "a depthwise Conv needs float32 of rank 3 to 5"
        channels, ones = len(affine.scale), [1] * (rank - 2)
        weight = affine.scale.reshape(channels, 1, *ones).astype(np.float32)
        bias = affine.shift.astype(np.float32)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            return "its parameters are not finite in float32"
        data = node.inputs[0]
        node.inputs.clear()
        node.inputs.extend(
            [data, self._constant(f"{node.name}_weight", weight), self._constant(f"{node.name}_bias", bias)]
        )
        node.op = "Conv"
        node.attrs.clear()
        node.attrs.update({"group": channels, "kernel_shape": ones})
        return None

    def _remove(self, node: gs.Node) -> None:
        node.outputs.clear()
        node.inputs.clear()
        self.graph.nodes = [item for item in self.graph.nodes if item is not node]


@register
@dataclass(frozen=True)
class FoldBatchNorm(RepeatedPass):
    """Fold BatchNormalization into its neighbours.

    standalone: what becomes of one with no neighbour to take it. fold_affine: fold per-channel
    constants behind a weighted node too.
    """

    standalone: Literal["depthwise", "keep"] = "depthwise"
    fold_affine: bool = False
    name: ClassVar[str] = "fold_batchnorm"
    keeps_function: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: Context) -> bool:
        types = infer_types(graph)
        first = replace(context, notes=[])
        if self._sweep(graph, types, first, settle=False):
            context.notes.extend(first.notes)
            return True
        # What stands alone is settled last: folding others might have given it a neighbour.
        return self._sweep(graph, types, context, settle=True)

    def _sweep(self, graph: gs.Graph, types: Types, context: Context, settle: bool) -> bool:
        changed = False
        for current, path in list(subgraphs(graph)):
            if path and (graph.ir_version or 4) < 4:
                continue
            folder = _Folder(graph, current, types, context)
            for node in list(current.nodes):
                if node.domain in _STANDARD and node.op == "BatchNormalization":
                    changed |= self._fold(folder, node, settle)
                elif node.domain in _STANDARD and node.op in _AFFINE_OPS and self.fold_affine:
                    changed |= self._fold_constant(folder, node)
        return changed

    def _fold(self, folder: _Folder, node: gs.Node, settle: bool) -> bool:
        name, context = node.name, folder.context
        affine = _batchnorm_map(node)
        if isinstance(affine, str):
            context.note("refused", name, affine)
            return False
        behind = folder.behind(node, node.inputs[0], affine)
        if behind is None:
            context.note("applied", name, "folded into the node before it")
            return True
        before = folder.before(node, affine)
        if before is None:
            context.note("applied", name, "folded into the nodes that read it")
            return True
        reason = f"not folded backwards: {behind}; nor forwards: {before}"
        if self.standalone == "depthwise" and settle:
            alone = folder.depthwise(node, affine)
            if alone is None:
                context.note("applied", name, f"made a depthwise Conv; {reason}")
                return True
            reason = f"{reason}; nor made a depthwise Conv: {alone}"
        context.note("refused", name, reason)
        return False

    def _fold_constant(self, folder: _Folder, node: gs.Node) -> bool:
        found = _constant_map(node, folder.types)
        if found is None:
            return False
        name, op = node.name, node.op
        reason = folder.behind(node, *found)
        kind = "applied" if reason is None else "refused"
        folder.context.note(kind, name, reason or f"{op} folded into the node before it")
        return reason is None
