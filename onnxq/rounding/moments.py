"""Means and covariances of a layer's input in two networks, summed up chunk by chunk.

Columns are shifted by the means of the first chunk before they are multiplied in float32, which keeps the
covariance free of cancellation; the sums are float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from passes.rounding import Moments

__all__ = ["Accumulator"]

Float = npt.NDArray[np.float64]


class Accumulator:
    """Sums over columns of both inputs, [groups, K, n] each."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        self._sums: list[Float] = []
        self._cross: Float = np.zeros(0)
        self._second: Float = np.zeros(0)

    def update(self, real: npt.NDArray[np.float32], quantized: npt.NDArray[np.float32]) -> None:
        """Columns of the float network and of the quantized one, at the same positions; both are used up."""
        groups, size, count = real.shape
        if self._shift is None:
            self._shift = (real.mean(2, keepdims=True), quantized.mean(2, keepdims=True))
            self._sums = [np.zeros((groups, size)) for _ in range(2)]
            self._cross, self._second = (np.zeros((groups, size, size)) for _ in range(2))
        real -= self._shift[0]
        quantized -= self._shift[1]
        turned = quantized.swapaxes(1, 2)
        self._cross += real @ turned
        self._second += quantized @ turned
        for held, item in zip(self._sums, (real, quantized), strict=True):
            held += item.sum(2, dtype=np.float64)
        self.count += count

    def moments(self, centred: bool) -> Moments:
        """Of all columns so far. centred False: raw moments and zero means, for a layer without a bias."""
        assert self._shift is not None  # update ran
        off = [held / self.count for held in self._sums]
        cross = self._cross / self.count - off[0][..., np.newaxis] * off[1][:, np.newaxis]
        second = self._second / self.count - off[1][..., np.newaxis] * off[1][:, np.newaxis]
        real, quantized = (
            shift[..., 0].astype(np.float64) + mean for shift, mean in zip(self._shift, off, strict=True)
        )
        if centred:
            return Moments(cross, second, real, quantized)
        zero = np.zeros_like(real)
        cross = cross + real[..., np.newaxis] * quantized[:, np.newaxis]
        second = second + quantized[..., np.newaxis] * quantized[:, np.newaxis]
        return Moments(cross, second, zero, zero)
