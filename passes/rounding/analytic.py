"""Bias correction without data: what rounding does to a layer's mean output, by what BatchNormalization says.

Nagel et al., arXiv:1906.04721, section 4.2: with W rounded to Q, the output of a layer moves by (Q - W) E[x]
in the mean, and its bias takes that up. Behind a BatchNormalization of shift beta and scale gamma a channel
is taken to be normal with mean beta and standard deviation |gamma|; what follows is worked out from there:

- Relu and Clip to [a, b]: with A = (a - beta) / gamma, B = (b - beta) / gamma, phi and Phi of the normal
  distribution, E = beta (Phi(B) - Phi(A)) + gamma (phi(A) - phi(B)) + a Phi(A) + b (1 - Phi(B)); the spread
  behind it is not known any more.
- Add: means add up, spreads as those of independent variables.
- AveragePool and GlobalAveragePool, Flatten and Reshape that leave one value a channel: the mean stays.

Borders that are padded with zeros are not accounted for. `fold_batchnorm` in the same recipe leaves the
statistics in `Context.distributions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.graph.editing import is_constant, values
from passes.graph.layers import Layer, weight_index
from passes.placement.places import activation_input
from passes.rounding.task import Moments, RoundedLayer, RoundingTask, round_task

__all__ = ["analytic_biases", "clipped_mean", "expected_inputs"]

Float = npt.NDArray[np.float64]
_MEANS_STAY = ("AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Identity")


@dataclass(frozen=True)
class _Channels:
    """Of a tensor: means [C], and standard deviations [C] where they are known; whether it has one value a
    channel and image."""

    mean: Float
    spread: Float | None = None
    single: bool = False


def clipped_mean(mean: Float, spread: Float, low: float, high: float) -> Float:
    """E min(max(x, low), high) of normal x, [C]; low and high may be infinite."""
    flat = spread <= 0
    sigma = np.where(flat, 1.0, spread)
    result = np.zeros_like(mean)
    lower, upper = (low - mean) / sigma, (high - mean) / sigma
    below, under = _cumulative(lower), _cumulative(upper)
    result = mean * (under - below) + sigma * (_density(lower) - _density(upper))
    if math.isfinite(low):
        result = result + low * below
    if math.isfinite(high):
        result = result + high * (1 - under)
    return np.where(flat, np.clip(mean, low, high), result)


def _density(x: Float) -> Float:
    with np.errstate(over="ignore"):
        found: Float = np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)
    return found


def _cumulative(x: Float) -> Float:
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def _limits(node: gs.Node) -> tuple[float, float] | None:
    """Of a Relu or a Clip with constant limits; None for anything else."""
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op != "Clip":
        return None
    limits = [float(node.attrs.get("min", -math.inf)), float(node.attrs.get("max", math.inf))]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.is_empty():
            continue
        if not is_constant(tensor):
            return None
        limits[index] = float(values(tensor).reshape(-1)[0])
    return limits[0], limits[1]


def _behind(node: gs.Node, known: Mapping[str, _Channels]) -> _Channels | None:
    """What is known about a node's first output."""
    held = known.get(node.inputs[0].name) if node.inputs else None
    if held is None:
        return None
    limits = _limits(node)
    if limits is not None and held.spread is not None:
        return _Channels(clipped_mean(held.mean, held.spread, *limits), None, held.single)
    if node.op == "Add":
        other = known.get(node.inputs[1].name)
        if other is None or other.mean.shape != held.mean.shape:
            return None
        both = held.spread is not None and other.spread is not None
        spread = np.hypot(held.spread, other.spread) if both else None  # type: ignore[arg-type]
        return _Channels(held.mean + other.mean, spread, held.single and other.single)
    if node.op not in _MEANS_STAY or (node.op in ("Flatten", "Reshape") and not held.single):
        return None
    averaged = node.op in ("AveragePool", "GlobalAveragePool")
    single = held.single or node.op == "GlobalAveragePool"
    return _Channels(held.mean, None if averaged else held.spread, single)


def expected_inputs(graph: gs.Graph, distributions: Mapping[str, tuple[Float, Float]]) -> dict[str, Float]:
    """Tensor name -> mean of each channel [C], as far as it can be told. `graph` in topological order.

    distributions: tensor name -> (mean, standard deviation), [C] each.
    """
    known = {name: _Channels(mean, spread) for name, (mean, spread) in distributions.items()}
    for node in graph.nodes:
        if len(node.outputs) == 1 and node.outputs[0].name not in known:
            found = _behind(node, known)
            if found is not None:
                known[node.outputs[0].name] = found
    return {name: held.mean for name, held in known.items()}


def analytic_biases(
    graph: gs.Graph,
    found: Sequence[tuple[Layer, gs.Node, gs.Graph]],
    tasks: Sequence[RoundingTask],
    context: Context,
) -> dict[str, RoundedLayer]:
    """Layer name -> its weight rounded to nearest, and the corrected bias; the rest is noted."""
    expected = expected_inputs(graph, context.distributions)
    inputs = {
        layer.name: activation_input(node).name for layer, node, _ in found if weight_index(node) is not None
    }
    rounded: dict[str, RoundedLayer] = {}
    for task in tasks:
        layer, mean = task.layer, expected.get(inputs[task.layer.name])
        taps = task.array.size // task.array.shape[layer.channel_axis]
        if mean is None or len(mean) == 0 or (layer.groups * taps) % len(mean) or task.bias is None:
            context.note("info", layer.name, "nothing is known of its input's mean: bias not corrected")
            continue
        # Channels in the order of the weight's rows, each as often as the kernel has taps.
        columns = np.repeat(mean, layer.groups * taps // len(mean)).reshape(layer.groups, taps)
        nothing = np.zeros((layer.groups, 0, 0))
        rounded[layer.name] = round_task(task, Moments(nothing, nothing, columns, columns), damping=1.0)
    return rounded
