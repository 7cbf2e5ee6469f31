"""A model as a chain of steps, each from one rounded layer to the next.

Step 0 holds the nodes before the first layer, step i the i-th layer and what follows it until the next one.
A step reads and writes the tensors that are alive between it and its neighbours, whatever the graph's
branches; nodes whose results no later layer needs are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from onnxq.evaluation.dependencies import constant_nodes, read_by
from passes.graph.model import Model

__all__ = ["Step", "cut_steps", "step_model"]


@dataclass(frozen=True)
class Step:
    """nodes: in order, constant ones among them. reads, writes: names of tensors that data flows through.

    last_use: tensors that no later step reads.
    """

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    last_use: tuple[str, ...]


def cut_steps(model: Model, outputs: Sequence[str], to_end: bool = False) -> list[Step]:
    """Steps for the layers that write `outputs`, given in graph order; the last one ends before its layer.

    The list has as many entries as there are layers: after step i the i-th layer's input is known.
    to_end: one entry more, from the last layer to the outputs of the graph.
    """
    graph = model.proto.graph
    fixed = {tensor.name for tensor in graph.initializer}
    fixed |= {tensor.values.name for tensor in graph.sparse_initializer}
    fed = [value.name for value in graph.input if value.name not in fixed]
    makers: dict[str, onnx.NodeProto] = {}
    flowing: list[onnx.NodeProto] = []
    for node in graph.node:
        if set(read_by(node)) <= fixed:
            fixed.update(node.output)
            makers.update((name, node) for name in node.output)
        else:
            flowing.append(node)
    position = {name: at for at, node in enumerate(flowing) for name in node.output}
    starts = [position[name] for name in outputs]
    finals = [value.name for value in graph.output if to_end and value.name not in fixed]
    stops = [*starts, len(flowing)] if to_end else starts
    bounds = list(zip([0, *stops[:-1]], stops, strict=True))
    needed = _needed(flowing, starts, finals)
    last_read: dict[str, int] = {}
    for step, (begin, end) in enumerate(bounds):
        for at in range(begin, end + 1):  # the layer's own input must be there when the step is done
            if at in needed:
                last_read.update(dict.fromkeys(read_by(flowing[at]), step))
    last_read.update(dict.fromkeys(finals, len(bounds)))
    steps: list[Step] = []
    alive = dict.fromkeys(fed)
    for step, (begin, end) in enumerate(bounds):
        own = [flowing[at] for at in range(begin, end) if at in needed]
        made = {name for node in own for name in node.output if name}
        read = [name for name in alive if any(name in set(read_by(node)) for node in own)]
        # A layer's input is read in the next step too, when the layer itself runs.
        upcoming = set(read_by(flowing[end])) if end < len(flowing) else set(finals)
        kept = [name for name in made if last_read.get(name, -1) > step or name in upcoming]
        writes = tuple(sorted(kept))
        alive.update(dict.fromkeys(writes))
        over = [name for name in alive if last_read.get(name, -1) <= step and name not in upcoming]
        for name in over:
            del alive[name]
        nodes = (*constant_nodes(own, makers), *own)
        steps.append(Step(nodes, tuple(read), writes, tuple(over)))
    return steps


def _needed(flowing: Sequence[onnx.NodeProto], starts: Iterable[int], finals: Iterable[str]) -> set[int]:
    """Positions of nodes that lead to a layer or to one of the tensors `finals`, the layers included."""
    layers = set(starts)
    wanted = set(finals)
    needed: set[int] = set()
    for at in range(len(flowing) - 1 if wanted else max(layers, default=-1), -1, -1):
        node = flowing[at]
        if at in layers or wanted & set(node.output):
            needed.add(at)
            wanted.update(read_by(node))
    return needed


def step_model(
    model: Model,
    nodes: Sequence[onnx.NodeProto],
    reads: Sequence[onnx.ValueInfoProto],
    writes: Sequence[str],
    extra: Sequence[onnx.TensorProto] = (),
) -> Model:
    """The nodes as a model of their own; `extra`: initializers beside those of the model."""
    used = {name for node in nodes for name in read_by(node)}
    source = model.proto
    outputs = [onnx.ValueInfoProto(name=name) for name in writes]
    graph = onnx.GraphProto(name="step", node=nodes, input=reads, output=outputs)
    graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    graph.sparse_initializer.extend(
        tensor for tensor in source.graph.sparse_initializer if tensor.values.name in used
    )
    graph.initializer.extend(extra)
    proto = onnx.ModelProto(ir_version=source.ir_version, graph=graph, opset_import=source.opset_import)
    proto.functions.extend(source.functions)
    return Model(proto, model.name)
