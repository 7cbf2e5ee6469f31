"""Rounding of weights to a trellis (runtime_ops/trellis.py), plainly or by data.

The objective and the names are those of passes/rounding/second_order.py: columns in order, the error of each
fed forward to those behind it (GPTQ), then coordinate descent. Where scalar codes take each weight by itself,
here a column is the unit: its rows are a stretch of the chain, and Viterbi's algorithm finds their best path
from where the column before ended. Descent keeps where a column begins and ends: its neighbours stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.trellis import level_spread, tcq_levels, trellis_path

__all__ = ["Represent", "TrellisRows", "first_scale", "round_trellis"]

Float = npt.NDArray[np.float64]
# What the file makes of a scale.
Represent = Callable[[Float], Float]
# Root mean square of a row over that of the levels. Weights have wider tails than a normal distribution, and
# errors that are fed forward widen them.
_SPREAD = 1.2
_LAZY = 64
# More sweeps, and more fits of the scales than gain two percent each, are hardly worth their time.
_SWEEPS = 1
_FITS = 4
_GAIN = 0.98


@dataclass(frozen=True)
class TrellisRows:
    """windows: uint16 [N, M, K]. scale: [N, M]. values: rounded weights [N, M, K]. cost: the objective."""

    windows: npt.NDArray[np.uint16]
    scale: Float
    values: Float
    cost: float


class _Chain:
    """One weight in the making: W1 [N, M, K], its metric, and one scale a row."""

    def __init__(self, target: Float, hessian: Float | None, factor: Float | None, bits: int) -> None:
        self.target, self.hessian, self.factor, self.bits = target, hessian, factor, bits
        self.levels = tcq_levels().astype(np.float64)

    def cost(self, values: Float) -> float:
        difference = self.target - values
        image = difference if self.hessian is None else difference @ self.hessian
        return float(np.sum(image * difference))

    def _column(
        self, wanted: Float, scale: Float, importance: Float, start: int | None, end: int | None
    ) -> npt.NDArray[np.uint16]:
        """The path of one column [N, M]; importance [N]: what a squared error of each problem costs."""
        safe = np.where(scale > 0, scale, 1.0)
        weights = np.square(scale) * importance[:, np.newaxis]
        path = trellis_path((wanted / safe).reshape(-1), weights.reshape(-1), self.bits, start, end)
        return path.reshape(wanted.shape)

    def sequential(self, scale: Float) -> TrellisRows:
        """Columns in order, errors fed forward."""
        problems, rows, columns = self.target.shape
        rest, values = self.target.copy(), np.empty_like(self.target)
        windows = np.empty(self.target.shape, np.uint16)
        ones, state = np.ones(problems), None
        for begin in range(0, columns, _LAZY):
            stop = min(begin + _LAZY, columns)
            errors = np.zeros((problems, rows, stop - begin))
            for j in range(begin, stop):
                pivot = ones if self.factor is None else self.factor[:, j, j]
                windows[..., j] = self._column(rest[..., j], scale, 1 / np.square(pivot), state, None)
                values[..., j] = self.levels[windows[..., j]] * scale
                state = int(windows[-1, -1, j])
                if self.factor is None:
                    continue
                error = (rest[..., j] - values[..., j]) / pivot[:, np.newaxis]
                errors[..., j - begin] = error
                rest[..., j + 1 : stop] -= (
                    error[..., np.newaxis] * self.factor[:, np.newaxis, j, j + 1 : stop]
                )
            if self.factor is not None and stop < columns:
                rest[..., stop:] -= errors @ self.factor[:, begin:stop, stop:]
        return TrellisRows(windows, scale, values, self.cost(values))

    def refitted(self, found: TrellisRows, represent: Represent) -> Float:
        """Scales in closed form, s = <c, W1>_H / <c, c>_H by row."""
        shape = self.levels[found.windows]
        image = shape if self.hessian is None else shape @ self.hessian
        above, below = (np.einsum("nmk,nmk->nm", image, item) for item in (self.target, shape))
        sound = (above > 0) & (below > 0) & (found.scale > 0)
        return represent(np.where(sound, above / np.where(sound, below, 1.0), found.scale))

    def descended(self, found: TrellisRows, sweeps: int) -> TrellisRows:
        """Column after column to its best path given all others, in a metric."""
        assert self.hessian is not None
        windows, values, scale = found.windows.copy(), found.values.copy(), found.scale
        gradient = (self.target - values) @ self.hessian
        columns = windows.shape[-1]
        for _ in range(sweeps):
            moved = False
            for j in range(columns):
                diagonal = self.hessian[:, j, j]
                wanted = values[..., j] + gradient[..., j] / diagonal[:, np.newaxis]
                start = int(windows[-1, -1, j - 1]) if j else None
                end = int(windows[-1, -1, j]) if j + 1 < columns else None
                path = self._column(wanted, scale, diagonal, start, end)
                real = self.levels[path] * scale
                now, then = (
                    float(np.sum(np.square(wanted - item) * diagonal[:, np.newaxis]))
                    for item in (values[..., j], real)
                )
                if then >= now:
                    continue
                step = real - values[..., j]
                gradient -= step[..., np.newaxis] * self.hessian[:, np.newaxis, j]
                windows[..., j], values[..., j], moved = path, real, True
            if not moved:
                break
        return TrellisRows(windows, scale, values, self.cost(values))


def first_scale(target: npt.NDArray[Any]) -> Float:
    """The scale of each row [..., K] that a search starts from."""
    spread = np.sqrt(np.mean(np.square(target, dtype=np.float64), axis=-1))
    return np.asarray(spread * (_SPREAD / level_spread()))


def round_trellis(
    target: Float,
    bits: int,
    represent: Represent,
    hessian: Float | None = None,
    factor: Float | None = None,
    *,
    sweeps: int = 1,
) -> TrellisRows:
    """Round W1 [N, M, K] to a trellis of `bits` bits.

    represent: what the file makes of scales [N, M]. hessian [N, K, K] and its `upper_factor`: the metric;
    without them every weight counts alike. sweeps: of coordinate descent; 0 for one pass and nothing else.
    With sweeps the result is never worse, in its metric, than plain rounding on the same scales.
    """
    chain = _Chain(target, hessian, factor, bits)
    best = chain.sequential(represent(first_scale(target)))
    if not sweeps:
        return best
    for _ in range(_FITS):
        before, again = best.cost, chain.sequential(chain.refitted(best, represent))
        best = min(best, again, key=lambda item: item.cost)
        if again.cost > _GAIN * before:
            break
    if hessian is None:
        return best
    best = chain.descended(best, min(sweeps, _SWEEPS))
    plain = _Chain(target, None, None, bits).sequential(best.scale)
    cost = chain.cost(plain.values)
    return best if best.cost <= cost else dataclasses.replace(plain, cost=cost)
