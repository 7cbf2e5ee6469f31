"""Rounding that looks at the data: second-order rounding with a corrected target, in numpy.

A layer computes W x per output channel; x_f is its input in the float network, x_q in the network quantized
so far. N problems (groups of a convolution; else 1) of M rows (output channels) and K columns each:

    S_qq = Cov(x_q, x_q), S_fq = Cov(x_f, x_q)         [N, K, K]
    H    = S_qq + damping * mean(diag S_qq) * I
    W1   = W + (S_yq - W S_qq) H^-1                    damped least squares on the quantized input,
                                                       for the output y = W x_f: S_yq = W S_fq
    Q    = argmin over the grid of tr (W1 - Q) H (W1 - Q)^T

The grid of a row: scale * (code - zero), lowest <= code <= highest, with one scale per group of `size`
columns, taken from a few candidates. The minimum is sought in three steps.
1. Sequential rounding (GPTQ, arXiv:2210.17323; OBQ, arXiv:2208.11580): columns in order, the error of each
   fed forward to those that follow, with U the upper Cholesky factor of H^-1:
   w_l -= (w_j - q_j) U_jl / U_jj. What column j adds to the objective is ((w_j - q_j) / U_jj)^2, so the
   candidate of a group is chosen by its true cost when the group is reached.
2. Coordinate descent: each code to its best value given all others, q_j + (D H)_j / H_jj with D = W1 - Q.
3. The plain rounding of W1 is kept in every row in which it is better; so the result is never worse.
Asked to, codes are also learned (passes/rounding/learned.py) on the scales that the sequential pass chose,
settled by coordinate descent, and taken in the rows in which they are better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dtrtri

from passes.rounding.learned import Learning, learn_codes

__all__ = [
    "Grid",
    "Rounded",
    "corrected_target",
    "damped",
    "objective",
    "round_rows",
    "snapped",
    "upper_factor",
]

Float = npt.NDArray[np.float64]
# Columns whose errors are fed forward one by one; what lies behind them is updated at once (BLAS).
_LAZY = 64
# Values of working copies (candidates x rows x columns) that are held at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Grid:
    """What a weight may become: scale * (code - zero).

    scale, zero: [A, N, M, n], A candidates (the plain one first) for n groups of `size` columns.
    shared: all rows take the same candidate (one scale per tensor). levels: magnitudes of the codes
    that there are, from 0 upwards, every other one even; None for all whole numbers.
    """

    scale: Float
    zero: Float
    lowest: int
    highest: int
    size: int
    shared: bool = False
    levels: Float | None = None

    def only(self, index: npt.NDArray[np.intp]) -> Grid:
        """The grid with one candidate left, `index` [N, M, n] of them."""
        scale, zero = (np.take_along_axis(a, index[np.newaxis], 0) for a in (self.scale, self.zero))
        return replace(self, scale=scale, zero=zero)


@dataclass(frozen=True)
class Rounded:
    """codes: [N, M, K], whole numbers. scale, zero: [N, M, n]. cost: [N, M], the objective of each row."""

    codes: Float
    scale: Float
    zero: Float
    cost: Float
    size: int

    @property
    def values(self) -> Float:
        """The rounded weights [N, M, K]."""
        return _decoded(self.codes, self.scale, self.zero, self.size)


def damped(second: Float, damping: float) -> Float:
    """H of S_qq [N, K, K]; the identity where the input is constant, so that rounding is plain there."""
    size = second.shape[-1]
    mean = np.trace(second, axis1=-2, axis2=-1) / max(size, 1)
    dead = mean <= np.finfo(np.float64).tiny
    diagonal = np.where(dead, 1.0, damping * mean)
    held = np.where(dead[:, np.newaxis, np.newaxis], 0.0, second)
    result: Float = held + diagonal[:, np.newaxis, np.newaxis] * np.eye(size)
    return result


def upper_factor(hessian: Float) -> Float:
    """U, upper triangular, with H^-1 = U^T U, for H [N, K, K]. LinAlgError where H is not positive."""
    # Cholesky of the matrix read backwards gives H = A A^T with A upper triangular, and U = A^-1.
    lower = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    upper = np.ascontiguousarray(lower[:, ::-1, ::-1])
    result: Float
    if upper.shape[-1] < _LAZY:  # many small ones at once: of depthwise convolutions
        result = np.triu(np.linalg.inv(upper))
    else:
        # LAPACK reads columns first: to it, the transpose is what lies there, and it is lower triangular.
        result = np.stack([dtrtri(each.T, lower=1)[0].T for each in upper])
    return result


def corrected_target(weight: Float, wanted: Float, second: Float, factor: Float) -> Float:
    """W1 [N, M, K] of W, of the covariance of the wanted output with x_q (W S_fq, [N, M, K]) and of S_qq.

    factor: U of H.
    """
    alive = np.trace(second, axis1=-2, axis2=-1)[:, np.newaxis, np.newaxis] > 0
    shift = np.where(alive, wanted - weight @ second, 0.0)
    result: Float = weight + shift @ factor.swapaxes(-1, -2) @ factor
    return result


def objective(difference: Float, hessian: Float) -> Float:
    """(W1 - Q) H (W1 - Q)^T by row, [N, M], for W1 - Q [N, M, K]."""
    result: Float = np.einsum("nmk,nmk->nm", difference @ hessian, difference)
    return result


def _wide(item: Float, size: int, columns: int) -> Float:
    """[..., n] spread over the columns of each group: [..., K]."""
    return np.repeat(item, size, axis=-1)[..., :columns] if item.shape[-1] > 1 else item


def _decoded(codes: Float, scale: Float, zero: Float, size: int) -> Float:
    columns = codes.shape[-1]
    result: Float = (codes - _wide(zero, size, columns)) * _wide(scale, size, columns)
    return result


def snapped(values: Float, levels: Float) -> Float:
    """Values to the nearest of +-levels, ties to those at even places, saturated."""
    edges = (levels[1:] + levels[:-1]) / 2
    # A tie goes up where the lower level is at an odd place.
    edges[1::2] = np.nextafter(edges[1::2], 0)
    found: Float = np.copysign(levels[np.searchsorted(edges, np.abs(values))], values)
    return found


def _nearest(values: Float, scale: Float, zero: Float, grid: Grid) -> Float:
    """Codes of values, scale and zero broadcast against them: half to even, saturated."""
    if grid.levels is not None:
        return snapped(values / scale, grid.levels)
    codes: Float = np.clip(np.rint(values / scale) + zero, grid.lowest, grid.highest)
    return codes


def _plain(target: Float, grid: Grid, hessian: Float) -> Rounded:
    """Every weight to its nearest code, with the first candidate of scales."""
    scale, zero, columns = grid.scale[0], grid.zero[0], target.shape[-1]
    codes = _nearest(target, _wide(scale, grid.size, columns), _wide(zero, grid.size, columns), grid)
    cost = objective(target - _decoded(codes, scale, zero, grid.size), hessian)
    return Rounded(codes, scale, zero, cost, grid.size)


def _forward(work: Float, scale: Float, zero: Float, factor: Float, grid: Grid) -> tuple[Float, Float]:
    """Sequential rounding of the columns of one group; `work` [g, N, B], columns first, is used up.

    scale, zero: [N, B]. factor: [N, g, g]. Returns codes and scaled errors (w - q) / U_jj, both [g, N, B].
    """
    codes, errors = np.empty_like(work), np.empty_like(work)
    columns = len(work)
    # [g, g, N, 1]: one row of U as a column of numbers that multiply rows of weights.
    rows = np.ascontiguousarray(factor.transpose(1, 2, 0))[..., np.newaxis]
    for start in range(0, columns, _LAZY):
        stop = min(start + _LAZY, columns)
        for j in range(start, stop):
            codes[j] = _nearest(work[j], scale, zero, grid)
            errors[j] = (work[j] - (codes[j] - zero) * scale) / rows[j, j]
            if j + 1 < stop:
                work[j + 1 : stop] -= errors[j] * rows[j, j + 1 : stop]
        if stop < columns:
            fed = errors[start:stop].transpose(1, 2, 0) @ factor[:, start:stop, stop:]
            work[stop:] -= fed.transpose(2, 0, 1)
    return codes, errors


def _sequential(target: Float, factor: Float, grid: Grid) -> tuple[Float, npt.NDArray[np.intp], Float]:
    """Codes [N, M, K], the candidate of each group [N, M, n], and its cost by candidate [A, N, M, n]."""
    problems, rows, columns = target.shape
    candidates, groups = len(grid.scale), grid.scale.shape[-1]
    rest, codes = target.copy(), np.empty_like(target)
    chosen = np.zeros((problems, rows, groups), np.intp)
    costs = np.zeros((candidates, problems, rows, groups))
    for group in range(groups):
        part = slice(group * grid.size, min((group + 1) * grid.size, columns))
        width = part.stop - part.start

        def stacked(item: Float) -> Float:
            """[A, N, M] as [N, A * M]."""
            return item.transpose(1, 0, 2).reshape(problems, -1)

        columns_first = rest[..., part].transpose(2, 0, 1)[:, :, np.newaxis]
        work = np.repeat(columns_first, candidates, axis=2).reshape(width, problems, -1)
        scale, zero = stacked(grid.scale[..., group]), stacked(grid.zero[..., group])
        tried, errors = _forward(work, scale, zero, factor[:, part, part], grid)
        split = (width, problems, candidates, rows)
        tried, errors = tried.reshape(split), errors.reshape(split)
        cost = np.square(errors).sum(0)
        best = cost.argmin(1)
        costs[..., group], chosen[..., group] = cost.transpose(1, 0, 2), best
        pick = best[np.newaxis, :, np.newaxis]
        codes[..., part] = np.take_along_axis(tried, pick, 2)[:, :, 0].transpose(1, 2, 0)
        if part.stop < columns:
            error = np.take_along_axis(errors, pick, 2)[:, :, 0].transpose(1, 2, 0)
            rest[..., part.stop :] -= error @ factor[:, part, part.stop :]
    return codes, chosen, costs


def _chunks(rows: int, size: int) -> list[slice]:
    step = max(_CHUNK // max(size, 1), 1)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _part(grid: Grid, rows: slice) -> Grid:
    return replace(grid, scale=grid.scale[:, :, rows], zero=grid.zero[:, :, rows])


def _descend(
    target: Float, held: Float, scale: Float, zero: Float, hessian: Float, grid: Grid, sweeps: int
) -> Float:
    """Codes after coordinate descent from `held` codes; scale, zero: [N, M, n]."""
    columns = target.shape[-1]
    codes = held.copy()
    step, middle = (np.broadcast_to(_wide(a, grid.size, columns), target.shape) for a in (scale, zero))
    gradient = (target - (codes - middle) * step) @ hessian
    for _ in range(sweeps):
        changed = False
        for start in range(0, columns, _LAZY):
            part = slice(start, min(start + _LAZY, columns))
            moved = _settle(gradient, codes, step, middle, hessian, grid, part)
            if moved is not None:
                gradient -= moved @ hessian[:, part]
                changed = True
        if not changed:
            break
    return codes


def _settle(
    gradient: Float, codes: Float, step: Float, middle: Float, hessian: Float, grid: Grid, part: slice
) -> Float | None:
    """One sweep over the columns of `part`; writes their codes, returns by how much the weights moved.

    Works on copies with the columns first, so that each column lies in one piece.
    """
    slope, code, size, offset = (
        np.ascontiguousarray(item[..., part].transpose(2, 0, 1)) for item in (gradient, codes, step, middle)
    )
    rows = np.ascontiguousarray(hessian[:, part, part].transpose(1, 2, 0))[..., np.newaxis]
    moved = np.zeros_like(slope)
    for j in range(len(slope)):
        now = (code[j] - offset[j]) * size[j]
        wish = _nearest(now + slope[j] / rows[j, j], size[j], offset[j], grid)
        move = (wish - code[j]) * size[j]
        if move.any():
            code[j], moved[j] = wish, move
            slope[j + 1 :] -= move * rows[j, j + 1 :]
    if not moved.any():
        return None
    codes[..., part] = code.transpose(1, 2, 0)
    return moved.transpose(1, 2, 0)


def _refit(
    target: Float,
    found: Rounded,
    hessian: Float,
    grid: Grid,
    sweeps: int,
    represent: Callable[[Float], Float],
) -> Rounded:
    """Scales of whole rows (or the tensor) in closed form, s = <c, W1>_H / <c, c>_H, then descent again."""
    shape = found.codes - found.zero
    image = shape @ hessian
    above, below = (np.einsum("nmk,nmk->nm", image, item) for item in (target, shape))
    if grid.shared:
        above, below = (np.broadcast_to(item.sum(), item.shape) for item in (above, below))
    sound = (below > 0) & (above > 0)
    scale = np.where(sound, above / np.where(sound, below, 1.0), found.scale[..., 0])[..., np.newaxis]
    scale = represent(scale)
    codes = _descend(target, found.codes, scale, found.zero, hessian, grid, sweeps)
    cost = objective(target - _decoded(codes, scale, found.zero, grid.size), hessian)
    return Rounded(codes, scale, found.zero, cost, grid.size)


def _learned(
    target: Float, found: Rounded, hessian: Float, grid: Grid, sweeps: int, learning: Learning
) -> Rounded:
    """Other codes on the scales of `found`: learned, then settled by coordinate descent."""
    columns = target.shape[-1]
    scale, zero = (
        np.broadcast_to(_wide(item, grid.size, columns), target.shape) for item in (found.scale, found.zero)
    )
    codes = learn_codes(target, hessian, scale, zero, grid.lowest, grid.highest, learning)
    codes = _descend(target, codes, found.scale, found.zero, hessian, grid, sweeps)
    cost = objective(target - _decoded(codes, found.scale, found.zero, grid.size), hessian)
    return Rounded(codes, found.scale, found.zero, cost, grid.size)


def _better(first: Rounded, second: Rounded, shared: bool) -> Rounded:
    """Row by row (or, with one scale for all, altogether) the one of smaller objective; `first` in a tie."""
    worse = second.cost < first.cost
    if shared:
        worse = np.broadcast_to(second.cost.sum() < first.cost.sum(), worse.shape)
    pick = worse[..., np.newaxis]
    codes, scale, zero = (
        np.where(pick, b, a)
        for a, b in ((first.codes, second.codes), (first.scale, second.scale), (first.zero, second.zero))
    )
    return Rounded(codes, scale, zero, np.where(worse, second.cost, first.cost), first.size)


def round_rows(
    target: Float,
    hessian: Float,
    factor: Float,
    grid: Grid,
    *,
    sweeps: int = 4,
    represent: Callable[[Float], Float] | None = None,
    learning: Learning | None = None,
) -> Rounded:
    """Round W1 [N, M, K] on the grid by the three steps of the module's docstring.

    factor: `upper_factor(hessian)`. sweeps: of coordinate descent, 0 for none. represent: what the file makes
    of a scale [N, M, 1]; given, the scales of whole rows are fitted once in closed form behind the descent.
    learning: also learn the codes.
    """
    rows, columns = target.shape[1:]
    plain = _plain(target, grid, hessian)
    codes = np.empty_like(target)
    chosen = np.zeros(grid.scale.shape[1:], np.intp)
    parts = _chunks(rows, len(target) * columns * len(grid.scale))
    totals = np.zeros(len(grid.scale))
    for part in parts:
        codes[:, part], chosen[:, part], costs = _sequential(target[:, part], factor, _part(grid, part))
        totals += costs.sum((1, 2, 3))
    if grid.shared and len(grid.scale) > 1:
        chosen[:] = totals.argmin()
        single = grid.only(chosen)
        for part in parts:
            codes[:, part] = _sequential(target[:, part], factor, _part(single, part))[0]
    final = grid.only(chosen)
    scale, zero = final.scale[0], final.zero[0]
    codes = _descend(target, codes, scale, zero, hessian, grid, sweeps)
    cost = objective(target - _decoded(codes, scale, zero, grid.size), hessian)
    found = Rounded(codes, scale, zero, cost, grid.size)
    if represent is not None and scale.shape[-1] == 1:
        found = _better(found, _refit(target, found, hessian, grid, sweeps, represent), grid.shared)
    if learning is not None:
        learned = _learned(target, found, hessian, grid, sweeps, learning)
        # Row by row even with one scale for all: it is the same scale.
        found = _better(found, learned, shared=False)
    return _better(plain, found, grid.shared)
