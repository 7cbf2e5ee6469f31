"""`simplify`: the same function with less graph.

One round, over the graph and everything nested in it:

1. Nodes that hand their input on go (passes/folding/noops.py), before folding, so that an Identity of a
   shared weight does not become a copy of it.
2. Constant nodes become initializers.
3. Shape arithmetic that is known becomes constants; a dynamic batch stays dynamic (passes/folding/shapes.py).
4. Nodes that read only constants are worked out by graphsurgeon's fold_constants, which runs them in
   ONNX Runtime.
5. A Pad of zeros moves into the Conv or AveragePool behind it (passes/folding/pads.py).
6. Nodes and initializers that no output needs go.

Rounds repeat until one changes nothing, each with freshly inferred types; so the pass is idempotent.

Legality of folding a node (4):
 a. It is a standard operator without nested graphs, is not random, and makes plain tensors of a type
    that numpy holds; it does not read sub-byte, 8-bit float, bfloat16 or string constants.
 b. It is no quantization: QuantizeLinear and DequantizeLinear of a weight are what makes a file small.
 c. Its result is known to be no larger than `size_limit` bytes, or than its inputs together
    (a ConstantOfShape, Tile or Expand must not take all memory).
 d. It makes no output of its graph: an output is never an initializer directly.
 e. It pays (passes/folding/cost.py): what folding adds to the file is no more than what it removes. The
    transpose of an embedding that is read as it is too, and a table that a few nodes compute, stay so.
 f. Below IR 4 nested graphs keep their Constant nodes: an initializer there would have to be an input.

Inputs and outputs keep their names, order and types. Opsets before 7 broadcast and train differently;
such a model is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.core.base import Context, RepeatedPass, register
from passes.core.fields import Option
from passes.folding.cost import paying
from passes.folding.heavy import fold_heavy, reads_file
from passes.folding.noops import remove_noops
from passes.folding.pads import fold_pads
from passes.folding.shapes import fold_shapes
from passes.graph.boundary import source_model
from passes.graph.editing import add_constant, is_constant, sort_nodes, subgraphs, values
from passes.graph.inference import Types, infer_types

__all__ = ["Simplify"]

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Their result has an unknown shape but never more than (rank of the input) x its elements.
_SELECTING = frozenset({"Compress", "NonZero", "Unique"})
_PLAIN = {
    getattr(onnx.TensorProto, name): np.dtype(kind).itemsize
    for name, kind in {
        "FLOAT": np.float32,
        "DOUBLE": np.float64,
        "FLOAT16": np.float16,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "INT64": np.int64,
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "UINT64": np.uint64,
        "BOOL": np.bool_,
    }.items()
}


def _constant_value(node: gs.Node) -> onnx.TensorProto | None:
    """The value of a Constant node as a tensor of its own, whichever attribute holds it."""
    if "value" in node.attrs:
        held = node.attrs["value"]._values
        if isinstance(held, LazyValues):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(held.tensor)
            return tensor
        return numpy_helper.from_array(held)
    for key, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for name in (key, f"{key}s"):
            if name in node.attrs:
                return numpy_helper.from_array(np.array(node.attrs[name], dtype))
    return None


def _lower_constants(graph: gs.Graph) -> bool:
    """Constant nodes to initializers, those aside that are outputs, or strings."""
    changed = False
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        if node.op != "Constant" or not node.outputs or id(node.outputs[0]) in outputs:
            continue
        value = _constant_value(node)
        if value is None or value.data_type == onnx.TensorProto.STRING:
            continue
        tensor = node.outputs[0]
        value.name = tensor.name
        tensor.inputs.clear()
        tensor.to_constant(LazyValues(value))
        changed = True
    if changed:
        graph.nodes = [node for node in graph.nodes if node.outputs]
    return changed


@dataclass(frozen=True)
class _Folding:
    """What fold_constants may work out in one graph (rules a to d)."""

    types: dict[str, Any]
    outputs: frozenset[str]
    limit: int

    @classmethod
    def of(cls, graph: gs.Graph, types: Types, limit: int) -> _Folding:
        held = {name: types.of(tensor) for name, tensor in graph.tensors().items()}
        return cls(held, frozenset(tensor.name for tensor in graph.outputs), limit)

    def worth(self, graph: gs.Graph) -> tuple[set[str], int]:
        """Names of the nodes to fold (rules a to e), and the bytes that others would cost."""
        known: set[int] = set()
        possible = []
        for node in graph.nodes:
            ready = all(t.is_empty() or is_constant(t) or id(t) in known for t in node.inputs)
            if ready and node.outputs and not self.excludes(node):
                possible.append(node)
                known.update(id(tensor) for tensor in node.outputs)
        chosen, cost = paying(possible, graph.outputs, self._most)
        return {node.name for node in chosen}, cost

    def _most(self, tensor: Any) -> int:
        """Bytes of a tensor's values, at most."""
        held = self._bytes(tensor.name)
        if held is not None:
            return held
        if isinstance(tensor, gs.Constant):
            return int(values(tensor).nbytes)
        maker = tensor.inputs[0]
        if maker.op == "Range":
            return int(self._range_elements(maker) * 8)
        return sum(8 * (self._bytes(source.name) or 0) for source in maker.inputs if not source.is_empty())

    def _bytes(self, name: str) -> int | None:
        kind = self.types.get(name)
        if kind is None or kind.static is None or kind.dtype not in _PLAIN:
            return None
        return int(math.prod(kind.static)) * _PLAIN[kind.dtype]

    def _range_elements(self, node: gs.Node) -> float:
        """Length of a Range of constants."""
        if not all(isinstance(t, gs.Constant) and math.prod(t.shape) == 1 for t in node.inputs):
            return math.inf
        start, limit, delta = (float(values(tensor).reshape(-1)[0]) for tensor in node.inputs)
        return abs(limit - start) / abs(delta) if delta else math.inf

    def excludes(self, node: gs.Node) -> bool:
        """Whether the node must stay. graphsurgeon asks for nodes of a copy, hence names."""
        if node.domain not in (None, "", "ai.onnx") or node.op in _RANDOM | _QUANTIZATION | {"Constant"}:
            return True
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return True
        made = [tensor.name for tensor in node.outputs if not tensor.is_empty()]
        if any(name in self.outputs for name in made):
            return True
        read = [self._bytes(tensor.name) for tensor in node.inputs if not tensor.is_empty()]
        if any(size is None for size in read):
            return True
        given = sum(size or 0 for size in read)
        if node.op in _SELECTING:
            return given * 8 > self.limit
        if node.op == "Range":
            return self._range_elements(node) * 8 > self.limit
        sizes = [self._bytes(name) for name in made]
        return any(size is None or size > max(self.limit, given) for size in sizes)


def _scalar_ranges(top: gs.Graph, graph: gs.Graph) -> bool:
    """Make constants of one element that a Range reads scalars.

    Runtimes take vectors of one, but only while inference does not see through them: once folding has
    made them constants, checker and runtime refuse the file.
    """
    changed = False
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs if node.op == "Range" else ()):
            if isinstance(tensor, gs.Constant) and len(tensor.shape) > 0 and math.prod(tensor.shape) == 1:
                node.inputs[index] = add_constant(top, tensor.name, values(tensor).reshape(()))
                changed = True
    return changed


def _fold(graph: gs.Graph, types: Types, limit: int, context: Context) -> tuple[bool, int]:
    """Let graphsurgeon work out constant nodes of one graph.

    Returns whether any went, and the bytes that those which stay computed would have taken.
    """
    sort_nodes(graph)
    folding = _Folding.of(graph, types, limit)
    chosen, cost = folding.worth(graph)
    heavy = fold_heavy(graph, [node for node in graph.nodes if node.name in chosen])
    foldable = [
        node
        for node in graph.nodes
        if node.name in chosen and all(t.is_empty() or is_constant(t) for t in node.inputs)
    ]
    if not foldable:
        return heavy, cost
    before = sum(isinstance(tensor, gs.Constant) for tensor in graph.tensors().values())
    # fold_shapes stays off: graphsurgeon ignores Shape's start and end and drops casts around integer
    # division. flatten_subgraphs stays off: it loses outputs that are constants.
    options: dict[str, Any] = {
        "fold_shapes": False,
        "recurse_subgraphs": False,
        "flatten_subgraphs": False,
        "recurse_functions": False,
        "should_exclude_node": lambda node: node.name not in chosen or reads_file(node),
    }
    graph.fold_constants(partitioning="recursive", **options)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and not isinstance(tensor._values, LazyValues):
            tensor._values = np.ascontiguousarray(tensor._values)
    after = sum(isinstance(tensor, gs.Constant) for tensor in graph.tensors().values())
    for node in foldable:
        if any(tensor.outputs for tensor in node.outputs):  # a folded node has lost its outputs
            context.note("info", node.name, f"{node.op} of constants cannot be worked out here; it stays")
    return heavy or after != before, cost


@register
@dataclass(frozen=True)
class Simplify(RepeatedPass):
    """Fold constants and shapes, drop what does nothing.

    size_limit: bytes above which a folded result must not exceed its inputs.
    """

    size_limit: Annotated[int, Option(least=0)] = 1 << 20
    name: ClassVar[str] = "simplify"
    keeps_function: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: Context) -> bool:
        types = infer_types(graph)
        if types.note:
            context.note("info", "", types.note)
        changed = self._drop_dead(graph, context)
        may_nest = (graph.ir_version or 4) >= 4
        for current, path in list(subgraphs(graph)):
            removed = remove_noops(current, types)
            if removed:
                context.note("applied", path, f"{len(removed)} node(s) without effect removed")
            changed |= bool(removed)
            if not path or may_nest:
                current.ir_version = graph.ir_version
                changed |= _lower_constants(current)
        changed |= fold_shapes(graph, types)
        unstored = 0
        for current, path in list(subgraphs(graph)):
            if not path or may_nest:
                changed |= _scalar_ranges(graph, current)
                folded, cost = _fold(current, types, self.size_limit, context)
                changed, unstored = changed | folded, unstored + cost
            changed |= fold_pads(current, types, context)
        if unstored:
            text = f"constants that nodes compute stay computed: stored, they would take {unstored} bytes"
            context.note("info", "", text)
        return changed | self._drop_dead(graph, context)

    def _drop_dead(self, graph: gs.Graph, context: Context) -> bool:
        """Remove nodes that no output needs; True also when the file holds unused initializers."""
        before = [node.name for current, _ in subgraphs(graph) for node in current.nodes]
        graph.cleanup(recurse_functions=False)
        kept = {node.name for current, _ in subgraphs(graph) for node in current.nodes}
        used = {name for current, _ in subgraphs(graph) for name in current.tensors()}
        source = source_model(graph).proto.graph
        listed = {value.name for value in source.input}
        unused = [t.name for t in source.initializer if t.name not in used and t.name not in listed]
        dead = len(before) - len(kept)
        if dead:
            context.note("applied", "", f"{dead} node(s) that no output needs removed")
        return bool(dead or unused)
