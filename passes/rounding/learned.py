"""Learned rounding (AdaRound, arXiv:2004.10568) on second moments, in numpy.

For the target W1 on a grid of known scales, every weight takes the code below or above it, softly at first:

    Q(V) = scale * (clip(floor(W1 / scale) + zero + h(V), lowest, highest) - zero)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),   zeta = 1.1, gamma = -0.1        (eq. 23)
    minimise  tr (W1 - Q) H (W1 - Q)^T / c + lambda sum (1 - |2 h(V) - 1|^beta)             (eq. 21, 24)

by Adam, beta annealed from high to low, so that h ends at 0 or 1; without the second term at first. With
the moments H = E x x^T the first term is the reconstruction error over all of the data at once (eq. 25
without the activation function), so there are no batches and no chance: the result depends on nothing but
its input. c, the mean of scale^2 H_jj, makes the error of a weight one step off about 1 in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["GAMMA", "ZETA", "Learning", "annealed", "learn_codes"]

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
ZETA, GAMMA = 1.1, -0.1
# Weights that are learned at a time.
_CACHED = 1 << 17
_ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Learning:
    """steps: of Adam. rate: its step size. weight: lambda.

    warm_up: share of the steps without the second term. beta: its first and last exponent.
    """

    steps: int = 500
    rate: float = 0.02
    weight: float = 1.0
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)


def _rectified(variable: Single) -> tuple[Single, Single]:
    """h(V) and its derivative."""
    sigmoid = np.exp(-variable)
    sigmoid += 1
    np.reciprocal(sigmoid, out=sigmoid)
    wide = sigmoid * np.float32(ZETA - GAMMA)
    wide += np.float32(GAMMA)
    held = np.clip(wide, 0, 1)
    slope = (1 - sigmoid) * sigmoid
    slope *= np.float32(ZETA - GAMMA)
    slope *= held == wide
    return held, slope


def annealed(done: float, learning: Learning) -> float:
    """beta: cosine from the first exponent to the last, behind the warm-up; 0 during it.

    done: share of the steps that are over.
    """
    if done < learning.warm_up:
        return 0.0
    first, last = learning.beta
    share = (done - learning.warm_up) / (1 - learning.warm_up)
    return float(last + 0.5 * (first - last) * (1 + np.cos(share * np.pi)))


def learn_codes(
    target: Float, hessian: Float, scale: Float, zero: Float, lowest: int, highest: int, learning: Learning
) -> Float:
    """Codes [N, M, K], whole numbers, for W1 [N, M, K] and H [N, K, K]; scale, zero: [N, M, K]."""
    below = np.floor(target / scale) + zero
    # Outside of the grid both codes are its end.
    floor = np.clip(below, lowest, highest)
    free = (below >= lowest) & (below < highest)
    gap = target - (floor - zero) * scale
    unit = np.mean(np.square(scale) * np.einsum("nkk->nk", hessian)[:, np.newaxis])
    norm = (hessian / max(float(unit), np.finfo(np.float64).tiny)).astype(np.float32)
    up = np.empty(target.shape, bool)
    problems, rows, columns = target.shape
    # No row depends on another: so many at a time that all that belongs to them stays in the cache.
    many = max(_CACHED // columns, 1)
    for first in range(0, problems, max(many // rows, 1)):
        some = slice(first, first + max(many // rows, 1))
        for start in range(0, rows, many):
            part = some, slice(start, start + many)
            step, own = scale[part].astype(np.float32), free[part]
            up[part] = own & _learn(gap[part].astype(np.float32), norm[some], step, own, learning)
    codes: Float = floor + up
    return codes


def _learn(
    gap: Single, norm: Single, step: Single, free: npt.NDArray[np.bool_], learning: Learning
) -> npt.NDArray[np.bool_]:
    """Whether each weight takes the code above; gap: W1 less the value of the code below, norm: H / c."""
    share = np.clip(gap / step, 0.01, 0.99)
    variable = -np.log(np.float32(ZETA - GAMMA) / (share - np.float32(GAMMA)) - 1)
    first, second = np.zeros_like(variable), np.zeros_like(variable)
    slow, fast, tiny = _ADAM
    movable = step * free
    for at in range(learning.steps):
        h, slope = _rectified(variable)
        gradient = (gap - movable * h) @ norm
        gradient *= movable
        gradient *= np.float32(-2)
        beta = annealed(at / learning.steps, learning)
        if beta:
            middle = 2 * h - 1
            pull = np.copysign(np.abs(middle) ** np.float32(beta - 1), middle)
            pull *= np.float32(2 * learning.weight * beta)
            gradient -= pull
        gradient *= slope
        first += np.float32(1 - slow) * (gradient - first)
        gradient *= gradient
        second += np.float32(1 - fast) * (gradient - second)
        rate = learning.rate * np.sqrt(1 - fast ** (at + 1)) / (1 - slow ** (at + 1))
        root = np.sqrt(second)
        root += np.float32(tiny)
        variable -= np.float32(rate) * first / root
    return _rectified(variable)[0] >= np.float32(0.5)
