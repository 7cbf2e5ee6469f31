"""Which layers of a graph are rounded by data, and in what form (passes/rounding/task.py does it).

Left to plain rounding, with a note: 1. layers in subgraphs, 2. ConvTranspose, whose borders see fewer taps,
3. a MatMul whose weight has more than two axes, 4. GSE with the paper's encoder, which is kept for its table.
A bias takes up the means of Conv and Gemm; where none can be written (MatMul, a computed bias), the weights
do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.formats import format_of
from passes.formats.scales import bias_floor
from passes.graph.editing import values
from passes.graph.layers import Layer, weight_index
from passes.placement.activations import Range
from passes.placement.biases import fold_gemm_factors, room_for_bias
from passes.placement.places import activation_input
from passes.placement.plan import Plan
from passes.policy import Scheme
from passes.rounding.task import Method, RoundingTask

__all__ = ["rounding_tasks"]


def _plain_only(layer: Layer, weights: Scheme) -> str | None:
    """Why a layer has no data-aware rounding; None where it has."""
    if layer.in_subgraph:
        return "stands in a subgraph"
    if layer.op == "ConvTranspose":
        return "is a ConvTranspose"
    if layer.op == "MatMul" and len(layer.weight_shape) > 2:
        return "has a weight of more than two axes"
    return format_of(weights).plain_only(weights)


def rounding_tasks(
    graph: gs.Graph,
    found: Sequence[tuple[Layer, gs.Node, gs.Graph]],
    plan: Plan,
    ranges: Mapping[str, Range],
    context: Context,
    method: Method = "gptq",
) -> list[RoundingTask]:
    """A task for every layer whose weights the plan quantizes, in graph order; Gemm's factors are folded.

    ranges: of quantized activations by name. method: see `RoundingTask`.
    """
    tasks: list[RoundingTask] = []
    readers: dict[str, list[int]] = {}
    for layer, node, _ in found:
        held, index = plan[layer.name], weight_index(node)
        choice = held.choice
        if choice.weights.is_float or index is None:
            continue
        reason = _plain_only(layer, choice.weights)
        if reason is not None:
            context.note("info", layer.name, f"{reason}: rounded to nearest")
            continue
        unlearned = format_of(choice.weights).unlearned(choice.weights)
        if unlearned is not None and method in ("adaround", "brecq"):
            context.note("info", layer.name, unlearned)
        fold_gemm_factors(graph, node, index)
        array = values(node.inputs[index])
        source = ranges.get(activation_input(node).name)
        tasks.append(
            RoundingTask(
                layer,
                node.outputs[0].name,
                array,
                choice.weights,
                bias=room_for_bias(node, array.shape[layer.channel_axis]),
                input_scale=float(source.scale) if source is not None and held.integer_bias else None,
                half=held.half,
                method=method,
            )
        )
        readers.setdefault(_share(tasks[-1], node.inputs[index].name), []).append(len(tasks) - 1)
    for key, places in readers.items():
        if len(places) > 1:
            floor = _common_floor([tasks[place] for place in places])
            for place in places:
                tasks[place] = dataclasses.replace(tasks[place], shares=key, floor=floor)
    return tasks


def _share(task: RoundingTask, weight: str) -> str:
    """What tasks have in common whose weights may have the same codes."""
    layer = task.layer
    return f"{weight}:{task.scheme}:{task.half}:{task.method}:{layer.channel_axis}:{layer.groups}"


def _common_floor(tasks: Sequence[RoundingTask]) -> npt.NDArray[np.float32] | None:
    """The least scales that hold the int32 biases of all these layers; None where there are none."""
    floors = [
        bias_floor(task.bias, task.input_scale)
        for task in tasks
        if task.bias is not None and task.input_scale is not None
    ]
    if not floors:
        return None
    return np.asarray(np.max(floors, axis=0))
