"""Means and covariances of a layer's input in two networks, summed up chunk by chunk.

Columns are shifted by the means of the first chunk before they are multiplied in float32, which keeps the
covariance free of cancellation; the sums are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from passes.rounding.task import Moments

__all__ = ["Accumulator"]

Float = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]


class Accumulator:
    """Sums over columns of both inputs, [groups, K, n] each, and of the lag (see `Moments`), [groups, M, n].

    Two of them may be added; then the second one takes the shift of the first (`like`).
    """

    def __init__(self, like: Accumulator | None = None) -> None:
        self.count = 0
        self._shift: tuple[Matrix, Matrix] | None = like._shift if like is not None else None
        self._sums: dict[str, Float] = {}

    def update(self, real: Matrix, quantized: Matrix | None, lag: Matrix | None = None) -> None:
        """Columns of the float network and of the quantized one, at the same positions; both are used up.

        quantized: None where the input is the same in both; then no call gives any.
        """
        if self._shift is None:
            shift = real.mean(2, keepdims=True)
            self._shift = (shift, shift if quantized is None else quantized.mean(2, keepdims=True))
        real -= self._shift[0]
        if quantized is None:
            self._add("second", real @ real.swapaxes(1, 2))
            self._add("quantized", real.sum(2, dtype=np.float64))
            self.count += real.shape[2]
            return
        quantized -= self._shift[1]
        turned = quantized.swapaxes(1, 2)
        self._add("cross", real @ turned)
        self._add("second", quantized @ turned)
        self._add("real", real.sum(2, dtype=np.float64))
        self._add("quantized", quantized.sum(2, dtype=np.float64))
        if lag is not None:
            self._add("lag", lag @ turned)
            self._add("mean_lag", lag.sum(2, dtype=np.float64))
        self.count += real.shape[2]

    def _add(self, name: str, item: npt.NDArray[Any]) -> None:
        if name in self._sums:
            self._sums[name] += item
        else:
            self._sums[name] = item.astype(np.float64)

    def merge(self, other: Accumulator) -> None:
        """Take in another one of the same shift."""
        for name, item in other._sums.items():
            self._add(name, item)
        self.count += other.count

    def moments(self, centred: bool) -> Moments:
        """Of all columns so far. centred False: raw moments and zero means, for a layer without a bias."""
        assert self._shift is not None  # update ran
        sums = {name: item / self.count for name, item in self._sums.items()}
        off = sums["quantized"]
        off_real = sums.get("real", off)
        shift_real, shift = (item[..., 0].astype(np.float64) for item in self._shift)
        mean_real, mean, zero = shift_real + off_real, shift + off, np.zeros_like(off)
        # Second moments about the shift, moved to the means or to zero.
        base_real, base = (mean_real, mean) if centred else (zero, zero)
        second = _moved(sums["second"], off, off, shift - base, shift - base)
        cross = second
        if "cross" in sums:
            cross = _moved(sums["cross"], off_real, off, shift_real - base_real, shift - base)
        lag = mean_lag = None
        if "lag" in sums:
            mean_lag = sums["mean_lag"]
            start = -mean_lag if centred else np.zeros_like(mean_lag)
            lag = _moved(sums["lag"], mean_lag, off, start, shift - base)
            mean_lag = mean_lag if centred else np.zeros_like(mean_lag)
        if not centred:
            mean_real, mean = zero, zero
        return Moments(cross, second, mean_real, mean, lag, mean_lag)


def _moved(product: Float, left: Float, right: Float, a: Float, b: Float) -> Float:
    """E (u + a)(v + b)^T from E u v^T, E u = left and E v = right."""

    def outer(x: Float, y: Float) -> Float:
        return x[..., np.newaxis] * y[:, np.newaxis]

    result: Float = product + outer(left, b) + outer(a, right) + outer(a, b)
    return result
