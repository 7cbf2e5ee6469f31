"""Where activations are quantized, so that ONNX Runtime fuses every Q/DQ pair that the policy implies.

Rules (ONNX Runtime's QDQ selectors, read off its optimised graphs):
1. A quantized Conv wants Q/DQ on its input and Q on its output; Gemm and MatMul fuse with a float output,
   but for a Gemm with a Relu or Clip behind it, which ONNX Runtime would fuse in float first.
2. Relu and Clip behind a layer, and the Mul of a smoothed layer, belong to its epilogue: Q stands
   behind them, never between. The Mul in front of a layer smoothed at its input belongs to it as
   well: Q stands before that Mul.
3. Add, Mul, Concat, pooling and the like between quantized layers are quantized too, so that no
   float island is left: an operator counts as between when quantized layers lie on both sides. Relu
   and Clip behind it are its epilogue, as for a layer.
4. Data movement (Reshape, MaxPool, ...) shares its input's scale, or it would not run on integers.
5. What a quantized producer writes is read as quantized by everyone; what a float producer writes
   is quantized only for the readers that the policy quantizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from passes.graph.editing import consumers, is_constant, producer
from passes.graph.layers import Layer, weight_index
from passes.policy import Policy, Scheme

__all__ = [
    "MOVE_OPS",
    "ActivationPlan",
    "activation_input",
    "epilogue_end",
    "plan_activations",
    "quantized_input",
]

# Operators with an integer kernel behind DQ -> op -> Q, each output with a scale of its own.
COMPUTE_OPS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"})
# Operators that move data: output scale = input scale. The data is their first input.
MOVE_OPS = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "Slice"}
)
EPILOGUE_OPS = frozenset({"Relu", "Clip"})


@dataclass
class ActivationPlan:
    """Tensors to quantize.

    schemes: tensor name -> scheme. source: tensor name -> the tensor whose range it takes (itself,
    unless data movement shares the scale). for_all: tensors that every reader reads quantized.
    readers: tensor name -> nodes that read it quantized.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    for_all: set[str] = field(default_factory=set)
    readers: dict[str, list[gs.Node]] = field(default_factory=dict)
    tensors: dict[str, gs.Tensor] = field(default_factory=dict)


def activation_input(node: gs.Node) -> gs.Tensor:
    """The layer's data input (its weight is the other one)."""
    index = weight_index(node)
    return node.inputs[1 - index] if index is not None else node.inputs[0]


def quantized_input(node: gs.Node) -> tuple[gs.Tensor, gs.Node]:
    """The tensor to quantize for a layer, and the node that reads it: the layer or its smoothing Mul.

    The name that `smooth` gave the Mul tells it from a Mul of the model's own, or of the layer before it.
    """
    data = activation_input(node)
    before = producer(data)
    if before is None or before.op != "Mul" or not before.name.startswith(f"{node.name}_smooth_"):
        return data, node
    sources = [tensor for tensor in before.inputs if not is_constant(tensor)]
    if len(sources) != 1 or len(consumers(data)) != 1 or before.outputs[0] is not data:
        return data, node
    return sources[0], before


def _single_reader(tensor: gs.Tensor, outputs: set[int]) -> gs.Node | None:
    readers = consumers(tensor)
    return readers[0] if len(readers) == 1 and id(tensor) not in outputs else None


def _behind_activation(tensor: gs.Tensor, outputs: set[int]) -> gs.Tensor:
    """The tensor behind a Relu or Clip that alone reads this one; else the tensor itself."""
    reader = _single_reader(tensor, outputs)
    if reader is not None and reader.op in EPILOGUE_OPS and reader.inputs[0] is tensor:
        return reader.outputs[0]
    return tensor


def epilogue_end(node: gs.Node, outputs: set[int]) -> gs.Tensor:
    """The tensor behind the layer's epilogue (rule 2); `outputs`: ids of the graph's outputs."""
    tensor = node.outputs[0]
    reader = _single_reader(tensor, outputs)
    # A Mul that belongs to the next layer (smoothed at its input) is not this layer's.
    if reader is not None and reader.op == "Mul" and any(is_constant(t) for t in reader.inputs):
        following = _single_reader(reader.outputs[0], outputs)
        if (
            following is None
            or weight_index(following) is None
            or quantized_input(following)[1] is not reader
        ):
            tensor = reader.outputs[0]
    return _behind_activation(tensor, outputs)


def _data_inputs(node: gs.Node) -> list[gs.Tensor]:
    return [node.inputs[0]] if node.op in MOVE_OPS else [t for t in node.inputs if not t.is_empty()]


def _supported(node: gs.Node) -> bool:
    """Whether the operator itself could run on integers."""
    if node.domain not in (None, "", "ai.onnx"):
        return False
    if node.op in MOVE_OPS:
        return len([t for t in node.outputs if t.name]) == 1
    return node.op in COMPUTE_OPS and not any(is_constant(t) for t in node.inputs)


class _Planner:
    def __init__(self, graph: gs.Graph, layers: Mapping[int, Layer], policy: Policy) -> None:
        self.graph, self.policy = graph, policy
        self.outputs = {id(tensor) for tensor in graph.outputs}
        self.layer_nodes = [
            node
            for node in graph.nodes
            if id(node) in layers and policy[layers[id(node)].name].activations.is_static
        ]
        self.scheme_of = {id(n): policy[layers[id(n)].name].activations for n in self.layer_nodes}
        self.fuses = {
            id(n): policy[layers[id(n)].name].weights.has_codes and n.op == "Conv" for n in self.layer_nodes
        }
        self.plan = ActivationPlan()

    def _result(self, node: gs.Node) -> gs.Tensor:
        """What an operator between layers gives, its epilogue included."""
        tensor = node.outputs[0]
        return tensor if node.op in MOVE_OPS else _behind_activation(tensor, self.outputs)

    def _between(self) -> list[gs.Node]:
        """Supported operators with quantized layers on both sides (rule 3), in graph order."""
        starts = {id(epilogue_end(node, self.outputs)) for node in self.layer_nodes}
        forward = set(starts)
        operators = [node for node in self.graph.nodes if _supported(node)]
        for node in operators:  # the graph is sorted topologically
            if any(id(t) in forward for t in _data_inputs(node)):
                forward.add(id(self._result(node)))
        wanted = {id(quantized_input(node)[0]) for node in self.layer_nodes}
        between: list[gs.Node] = []
        for node in reversed(operators):
            if id(self._result(node)) not in wanted:
                continue
            inputs = _data_inputs(node)
            wanted.update(id(t) for t in inputs)
            if any(id(t) in forward for t in inputs):
                between.append(node)
        return between[::-1]

    def _want(self, tensor: gs.Tensor, scheme: Scheme | None, reader: gs.Node | None) -> None:
        plan, name = self.plan, tensor.name
        plan.tensors[name] = tensor
        plan.source.setdefault(name, name)
        if reader is not None:
            plan.readers.setdefault(name, []).append(reader)
        if scheme is not None:
            held = plan.schemes.get(name)
            if held is None or scheme.bits > held.bits:
                plan.schemes[name] = scheme

    def inputs_only(self) -> ActivationPlan:
        """What layers read, and nothing else."""
        for node in self.layer_nodes:
            tensor, reader = quantized_input(node)
            self._want(tensor, self.scheme_of[id(node)], reader)
        return self.plan

    def build(self) -> ActivationPlan:
        plan, between = self.plan, self._between()
        quantized = {id(node) for node in (*self.layer_nodes, *between)}
        for node in self.layer_nodes:
            tensor, reader = quantized_input(node)
            quantized.add(id(reader))
            self._want(tensor, self.scheme_of[id(node)], reader)
        for node in between:
            for tensor in _data_inputs(node):
                self._want(tensor, None, node)
            result = self._result(node)
            self._want(result, None, None)
            plan.for_all.add(result.name)
        for node in self.layer_nodes:
            end = epilogue_end(node, self.outputs)
            read = any(id(reader) in quantized for reader in consumers(end))
            activated = node.op == "Gemm" and end is not node.outputs[0]
            if self.fuses[id(node)] or read or activated:
                if end.name not in plan.schemes:
                    self._want(end, self.scheme_of[id(node)], None)
                plan.for_all.add(end.name)
        self._share(between)
        widest = max(self.scheme_of.values(), key=lambda s: s.bits, default=None)
        for name in plan.tensors:
            if widest is not None:
                plan.schemes.setdefault(name, widest)
        for name, root in plan.source.items():
            plan.schemes[name] = plan.schemes[root]
        return plan

    def _share(self, between: list[gs.Node]) -> None:
        """Rule 4: the output of data movement takes range and scheme of its input."""
        plan = self.plan
        for node in between:
            if node.op not in MOVE_OPS:
                continue
            root = plan.source[node.inputs[0].name]
            name = node.outputs[0].name
            plan.source[name] = root
            wish, held = plan.schemes.get(name), plan.schemes.get(root)
            if wish is not None and (held is None or wish.bits > held.bits):
                plan.schemes[root] = wish


def plan_activations(
    graph: gs.Graph, layers: Mapping[int, Layer], policy: Policy, *, inputs_only: bool = False
) -> ActivationPlan:
    """The plan for a topologically sorted graph; `layers`: id(node) -> layer of the top-level graph.

    inputs_only: what layers read, at its place; nothing between them.
    """
    planner = _Planner(graph, layers, policy)
    return planner.inputs_only() if inputs_only else planner.build()
