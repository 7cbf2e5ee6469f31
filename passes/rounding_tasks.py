"""Which layers of a graph are rounded by data, and in what form (passes/rounding.py does it).

Left to plain rounding, with a note: 1. layers in subgraphs, 2. ConvTranspose, whose borders see fewer taps,
3. a MatMul whose weight has more than two axes, 4. GSE with the paper's encoder, which is kept for its table.
A bias takes up the means of Conv and Gemm; where none can be written (MatMul, a computed bias), the weights
do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from passes.activations import Range
from passes.base import Context
from passes.biases import fold_gemm_factors, room_for_bias
from passes.editing import values
from passes.layers import Layer, weight_index
from passes.packed import Storage
from passes.placement import activation_input
from passes.policy import Policy, Scheme
from passes.rounding import Method, RoundingTask

__all__ = ["rounding_tasks"]


def _plain_only(layer: Layer, weights: Scheme) -> str | None:
    """Why a layer has no data-aware rounding; None where it has."""
    if layer.in_subgraph:
        return "stands in a subgraph"
    if layer.op == "ConvTranspose":
        return "is a ConvTranspose"
    if layer.op == "MatMul" and len(layer.weight_shape) > 2:
        return "has a weight of more than two axes"
    return "has the paper's encoder" if weights.encoder == "paper" else None


def rounding_tasks(
    graph: gs.Graph,
    found: Sequence[tuple[Layer, gs.Node, gs.Graph]],
    policy: Policy,
    ranges: Mapping[str, Range],
    storage: Storage,
    context: Context,
    method: Method = "gptq",
) -> list[RoundingTask]:
    """A task for every layer whose weights the policy quantizes, in graph order; Gemm's factors are folded.

    ranges: of quantized activations by name. method: see `RoundingTask`.
    """
    tasks: list[RoundingTask] = []
    for layer, node, _ in found:
        choice, index = policy[layer.name], weight_index(node)
        if choice.weights.is_float or index is None:
            continue
        reason = _plain_only(layer, choice.weights)
        if reason is not None:
            context.note("info", layer.name, f"{reason}: rounded to nearest")
            continue
        if choice.weights.format == "tcq" and method in ("adaround", "brecq"):
            context.note("info", layer.name, "a trellis is not learned: rounded as by gptq")
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
                input_scale=float(source.scale) if source is not None and storage.fuses else None,
                half=storage.packs(choice),
                method=method,
            )
        )
    return tasks
