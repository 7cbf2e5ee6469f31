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

__all__ = ["Learning", "learn_codes"]

Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
_ZETA, _GAMMA = 1.1, -0.1
_ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Learning:
    """steps: of Adam. rate: its step size. weight: lambda.

    warm_up: share of the steps without the second term. beta: its first and last exponent.
    """

    steps: int = 1000
    rate: float = 0.02
    weight: float = 1.0
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)


def _rectified(variable: Single) -> tuple[Single, Single]:
    """h(V) and its derivative."""
    sigmoid = 1 / (1 + np.exp(-variable))
    wide = sigmoid * np.float32(_ZETA - _GAMMA) + np.float32(_GAMMA)
    inside = (wide > 0) & (wide < 1)
    slope = np.where(inside, sigmoid * (1 - sigmoid) * np.float32(_ZETA - _GAMMA), np.float32(0))
    return np.clip(wide, 0, 1), slope


def _beta(step: int, learning: Learning) -> float:
    """Cosine from the first exponent to the last, behind the warm-up; 0 during it."""
    start = learning.warm_up * learning.steps
    if step < start:
        return 0.0
    first, last = learning.beta
    done = (step - start) / max(learning.steps - start, 1)
    return float(last + 0.5 * (first - last) * (1 + np.cos(done * np.pi)))


def learn_codes(
    target: Float, hessian: Float, scale: Float, zero: Float, lowest: int, highest: int, learning: Learning
) -> Float:
    """Codes [N, M, K], whole numbers, for W1 [N, M, K] and H [N, K, K]; scale, zero: [N, M, K]."""
    below = np.floor(target / scale) + zero
    # Outside of the grid both codes are its end.
    floor = np.clip(below, lowest, highest)
    free = ((below >= lowest) & (below < highest)).astype(np.float32)
    step, gap = scale.astype(np.float32), (target - (floor - zero) * scale).astype(np.float32)
    unit = np.mean(np.square(scale) * np.einsum("nkk->nk", hessian)[:, np.newaxis])
    norm = (hessian / max(float(unit), np.finfo(np.float64).tiny)).astype(np.float32)
    share = np.clip(gap / step, 0.01, 0.99)
    variable = -np.log(np.float32(_ZETA - _GAMMA) / (share - np.float32(_GAMMA)) - 1)
    first, second = np.zeros_like(variable), np.zeros_like(variable)
    slow, fast, tiny = _ADAM
    for at in range(learning.steps):
        h, slope = _rectified(variable)
        difference = gap - step * h * free
        gradient = -2 * (difference @ norm) * step * free * slope
        beta = _beta(at, learning)
        if beta:
            middle = 2 * h - 1
            pull = np.sign(middle) * np.abs(middle) ** np.float32(beta - 1)
            gradient -= np.float32(2 * learning.weight * beta) * pull * slope
        first += np.float32(1 - slow) * (gradient - first)
        second += np.float32(1 - fast) * (np.square(gradient) - second)
        rate = learning.rate * np.sqrt(1 - fast ** (at + 1)) / (1 - slow ** (at + 1))
        variable -= np.float32(rate) * first / (np.sqrt(second) + np.float32(tiny))
    codes: Float = floor + ((_rectified(variable)[0] >= 0.5) * free).astype(np.float64)
    return codes
