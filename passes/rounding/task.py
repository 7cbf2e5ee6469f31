"""Data-aware rounding of one layer's weight: an encoder beside `encode_weight`.

The application brings the moments of the layer's input, in the float network and in the network quantized
so far; this module lays the weight out in rows, has its format round them (passes/formats/), and gives the
encoded weight and the bias that belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from passes.formats import format_of
from passes.formats.base import RowTask
from passes.formats.scales import bias_floor
from passes.formats.weights import EncodedWeight, naming
from passes.graph.layers import Layer
from passes.graph.model import Model
from passes.policy import Scheme
from passes.rounding.learned import Learning
from passes.rounding.second_order import (
    corrected_target,
    damped,
    upper_factor,
)

__all__ = [
    "Dampings",
    "Method",
    "Moments",
    "RoundedLayer",
    "Rounder",
    "RoundingTask",
    "choose_dampings",
    "prediction_error",
    "round_task",
    "with_codes",
]

Float = npt.NDArray[np.float64]
# What a layer's rounding may be, but for nearest.
Method = Literal["bias", "gptq", "adaround", "brecq"]
_TRIES = 4


@dataclass(frozen=True)
class Moments:
    """Of a layer's input, by group of channels; K: weights of an output channel, M: channels of a group.

    cross: Cov(x_f, x_q), second: Cov(x_q, x_q), both [groups, K, K]. mean_float, mean: of x_f and x_q,
    [groups, K]. Where the layer has no place for a bias, raw moments and zero means.
    lag, mean_lag: Cov(d, x_q) [groups, M, K] and the mean [groups, M] of d, what the tensor that is added to
    the layer's output lacks in the rounded network (float less rounded), for the layer to make up; or None.
    """

    cross: Float
    second: Float
    mean_float: Float
    mean: Float
    lag: Float | None = None
    mean_lag: Float | None = None

    def wanted(self, weight: Float) -> Float:
        """Covariance of the wanted output with x_q, [groups, M, K]."""
        plain: Float = weight @ self.cross
        return plain if self.lag is None else plain + self.lag


@dataclass(frozen=True)
class RoundingTask:
    """A weight to round.

    output: the tensor that the node writes, by which the application finds it in the model.
    array: the weight (a Gemm's alpha is in it). bias: float64 [C] with beta in it, zeros where there is
    none yet; None where none can be added. input_scale: of quantized activations, for the int32 range of the
    bias; None where the bias stays float. half: float16 scales if they fit (bit streams). method: gptq;
    adaround, which learns the codes on top of it; brecq, which learns those of a block together on top of
    that; or bias, which keeps the plain rounding of the given weight
    and corrects the bias alone (empirical bias correction). shares: the same text for layers that read the
    same weight and want the same of it; empty for a weight with one reader. floor: least scale by channel,
    which the biases of all these need.
    """

    layer: Layer
    output: str
    array: npt.NDArray[Any]
    scheme: Scheme
    bias: Float | None = None
    input_scale: float | None = None
    half: bool = False
    method: Method = "gptq"
    shares: str = ""
    floor: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RoundedLayer:
    """The weight as codes, and the bias that belongs to it (None where none can be added).

    note: what there is to say about how it came about.
    """

    encoded: EncodedWeight
    bias: Float | None
    note: str = ""


# (model at that point, what is to be rounded, in graph order) -> layer name -> result; layers that are left
# out keep the plain rounding.
Rounder = Callable[[Model, Sequence[RoundingTask]], Mapping[str, RoundedLayer]]


def _rows(array: npt.NDArray[Any], axis: int, groups: int) -> Float:
    """[groups, C / groups, K] in float64."""
    channels = array.shape[axis]
    rows = np.moveaxis(np.asarray(array, np.float64), axis, 0).reshape(channels, -1)
    return rows.reshape(groups, channels // groups, -1)


@dataclass(frozen=True)
class Dampings:
    """Relative to the mean of the diagonal of S_qq. target: of the least squares for W1; metric: of H."""

    target: float
    metric: float


def _metric(moments: Moments, damping: float) -> tuple[Float, Float]:
    """H and its upper factor."""
    hessian = damped(moments.second, damping)
    return hessian, upper_factor(hessian)


def _target(weight: Float, moments: Moments, factor: Float) -> Float:
    """W1 of W, by the factor of the target's H."""
    return corrected_target(weight, moments.wanted(weight), moments.second, factor)


def round_task(
    task: RoundingTask, moments: Moments, damping: float | Dampings, sweeps: int = 4
) -> RoundedLayer:
    """The weight rounded on `moments`, and its bias. damping: one number for both of `Dampings`.

    With `input_scale` the int32 range of the new bias is kept: where rounding moved the bias out of it, the
    scales are widened and the layer is rounded again.
    """
    weight = _rows(task.array, task.layer.channel_axis, len(moments.second))
    if task.method == "bias":
        return _round_to(task, moments, weight)
    own = damping if isinstance(damping, Dampings) else Dampings(damping, damping)
    metric = _metric(moments, own.metric)
    wide = metric[1] if own.target == own.metric else _metric(moments, own.target)[1]
    return _round_to(task, moments, _target(weight, moments, wide), metric, sweeps)


def _round_to(
    task: RoundingTask,
    moments: Moments,
    target: Float,
    metric: tuple[Float, Float] | None = None,
    sweeps: int = 4,
) -> RoundedLayer:
    """W1 rounded in the metric (H and its factor), or plainly without one; and the bias that goes with it."""
    groups = len(moments.second)
    weight = _rows(task.array, task.layer.channel_axis, groups)
    learning = Learning() if task.method == "adaround" else None
    floor, bias = task.floor, task.bias
    keeps = _has_integer_bias(task)
    for _ in range(_TRIES):
        if keeps and bias is not None and task.input_scale is not None:
            wanted = bias_floor(bias, task.input_scale)
            floor = wanted if floor is None else np.maximum(floor, wanted)
        axis = task.layer.channel_axis
        rows = RowTask(task.array, axis, task.scheme, target, floor, task.half)
        with naming(task.layer):
            encoded = format_of(task.scheme).rounded(rows, metric, sweeps, learning)
        if task.bias is None:
            return RoundedLayer(encoded, None)
        real = _rows(encoded.decoded, task.layer.channel_axis, groups)
        bias = task.bias + _bias_shift(weight, real, moments)
        # The floor leaves codes a factor of 2 below the range of int32.
        if floor is None or (2 * floor >= bias_floor(bias, task.input_scale or 1.0)).all():
            break
    return RoundedLayer(encoded, bias)


def _has_integer_bias(task: RoundingTask) -> bool:
    return task.input_scale is not None and task.bias is not None


def with_codes(task: RoundingTask, encoded: EncodedWeight, moments: Moments) -> RoundedLayer | None:
    """A layer whose weight was rounded for another one that reads it, and its own bias.

    None where the bias would leave the range of int32 on these scales.
    """
    if task.bias is None:
        return RoundedLayer(encoded, None)
    groups = len(moments.second)
    weight, real = (_rows(array, task.layer.channel_axis, groups) for array in (task.array, encoded.decoded))
    bias = task.bias + _bias_shift(weight, real, moments)
    if not _has_integer_bias(task) or task.input_scale is None:
        return RoundedLayer(encoded, bias)
    # As in `_round_to`: the floor leaves a factor of 2.
    fits = (2 * encoded.scale >= bias_floor(bias, task.input_scale)).all()
    return RoundedLayer(encoded, bias) if fits else None


def _bias_shift(weight: Float, real: Float, moments: Moments) -> Float:
    """W E(x_f) - Q E(x_q), [C]."""
    shift = weight @ moments.mean_float[..., np.newaxis] - real @ moments.mean[..., np.newaxis]
    if moments.mean_lag is not None:
        shift = shift + moments.mean_lag[..., np.newaxis]
    return shift.reshape(-1)


def prediction_error(task: RoundingTask, found: RoundedLayer, held_out: Moments) -> float:
    """Mean squared error of the layer's output on other data than it was rounded on, less a constant."""
    real = _rows(found.encoded.decoded, task.layer.channel_axis, len(held_out.second))
    return _output_error(task, real, found.bias, held_out)


def _output_error(task: RoundingTask, real: Float, bias: Float | None, held_out: Moments) -> float:
    """Of the weights `real` [groups, M, K]. With y = W x_f + b,

    E|y - Q x_q - b'|^2 = tr(Q S_qq Q^T) - 2 tr(S_yq Q^T) + |E y - Q m_q - b'|^2 + tr(S_yy),
    the last term of which does not depend on the rounding.
    """
    weight = _rows(task.array, task.layer.channel_axis, len(held_out.second))
    spread = np.sum((real @ held_out.second - 2 * held_out.wanted(weight)) * real)
    offset = _bias_shift(weight, real, held_out)
    if task.bias is not None and bias is not None:
        offset = offset + task.bias - bias
    return float(spread + np.sum(np.square(offset)))


def choose_dampings(
    task: RoundingTask, fit: Moments, held_out: Moments, targets: Sequence[float], metrics: Sequence[float]
) -> Dampings:
    """The dampings of least output error on `held_out`, whose images no layer was rounded on.

    First the target's, by the error of W1 itself, then the metric's, by that of its rounding.
    """
    weight = _rows(task.array, task.layer.channel_axis, len(fit.second))
    wanted = {damping: _target(weight, fit, _metric(fit, damping)[1]) for damping in targets}

    def unrounded(damping: float) -> float:
        real = wanted[damping]
        bias = None if task.bias is None else task.bias + _bias_shift(weight, real, fit)
        return _output_error(task, real, bias, held_out)

    target = min(targets, key=unrounded)

    def rounded(damping: float) -> float:
        found = _round_to(task, fit, wanted[target], _metric(fit, damping), sweeps=0)
        return prediction_error(task, found, held_out)

    return Dampings(target, min(metrics, key=rounded))
