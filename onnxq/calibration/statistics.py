"""Running statistics of one tensor in constant memory: min, max, count and a histogram of 2,048 bins.

Bins are powers of two wide and lie on multiples of their width. Width and offset are a function of the
running (min, max) alone, and a wider bin is an exact union of narrower ones, so the histogram equals the one
made in a single pass, whatever the order of the values and however they were cut into batches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.core.errors import DataError

__all__ = ["BINS", "TensorStatistics"]

BINS = 2048
# Scratch memory of an update, in values: small enough for the cache, large enough for numpy.
_CHUNK = 1 << 17
# The narrowest bin relative to the largest magnitude: the precision of float32, and of exact bin numbers.
_FINEST = -22
_SMALLEST_EXPONENT = -100


class TensorStatistics:
    """min, max (floats), count (int) and `counts`, int64 of shape (2048,).

    Bin i spans [first + i, first + i + 1) * width, with the width a power of two.
    Before the first value: count 0, min = inf, max = -inf.
    """

    def __init__(self, name: str) -> None:
        """`name` is the tensor's, for messages."""
        self.name = name
        self.min, self.max, self.count = math.inf, -math.inf, 0
        self.first, self.exponent = 0, _SMALLEST_EXPONENT
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin in units of the tensor."""
        return math.ldexp(1.0, self.exponent)

    def update(self, array: NDArray[Any]) -> None:
        """Take in every value; raises DataError naming the tensor at a NaN or an infinity."""
        if array.size == 0:
            return
        flat = np.ravel(array)
        # Halves overflow when scaled, bfloat16 knows no floor, and integers must not wrap.
        if flat.dtype != np.float32 and flat.dtype != np.float64:
            flat = flat.astype(np.float64 if flat.dtype.kind in "iu" else np.float32)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"tensor '{self.name}': its values contain NaN or infinity on the calibration data; "
                "check the model and the preprocessing."
            )
        self._grow(min(self.min, low), max(self.max, high))
        # Scaled down, a tiny negative float32 would become -0 and change its bin; scaled up, all is exact.
        dtype = np.float64 if self.exponent > 0 else flat.dtype
        scale = np.dtype(dtype).type(math.ldexp(1.0, -self.exponent))
        for start in range(0, flat.size, _CHUNK):
            bins = np.floor(flat[start : start + _CHUNK].astype(dtype, copy=False) * scale).astype(np.intp)
            bins -= self.first
            self.counts += np.bincount(bins, minlength=BINS)
        self.count += flat.size

    def _grow(self, low: float, high: float) -> None:
        if low == self.min and high == self.max:
            return
        exponent = _exponent(low, high)
        first = math.floor(math.ldexp(low, -exponent))
        if self.count and (exponent, first) != (self.exponent, self.first):
            used = np.flatnonzero(self.counts)
            # Shifts of 63 and more are undefined; all bins lie in -1 and 0 by then.
            moved = ((self.first + used) >> min(exponent - self.exponent, 62)) - first
            grown = np.zeros(BINS, np.int64)
            np.add.at(grown, moved, self.counts[used])
            self.counts = grown
        self.min, self.max, self.first, self.exponent = low, high, first, exponent

    def edges(self) -> NDArray[np.float64]:
        """The 2,049 bin borders."""
        return np.ldexp(np.arange(self.first, self.first + BINS + 1, dtype=np.float64), self.exponent)

    def magnitudes(self) -> tuple[NDArray[np.int64], float]:
        """Counts of |x| in at most 2,048 bins from 0 on, and their width (bins far from 0 are merged)."""
        used = np.flatnonzero(self.counts)
        numbers = self.first + used
        folded = np.where(numbers < 0, -numbers - 1, numbers)
        shift = max(0, int(folded.max(initial=0)).bit_length() - (BINS - 1).bit_length())
        counts = np.bincount(folded >> shift, weights=self.counts[used].astype(np.float64))
        return counts.astype(np.int64), math.ldexp(1.0, self.exponent + shift)

    def to_arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(min, max) and (count, first, exponent, *counts), which hold everything exactly."""
        head = np.asarray([self.count, self.first, self.exponent], np.int64)
        return np.asarray([self.min, self.max]), np.concatenate([head, self.counts])

    @classmethod
    def from_arrays(
        cls, name: str, span: NDArray[np.float64], numbers: NDArray[np.int64]
    ) -> TensorStatistics:
        """The inverse of `to_arrays`."""
        if span.shape != (2,) or numbers.shape != (3 + BINS,):
            raise ValueError(f"statistics of '{name}' have shapes {span.shape} and {numbers.shape}")
        made = cls(name)
        made.min, made.max = float(span[0]), float(span[1])
        made.count, made.first, made.exponent = (int(value) for value in numbers[:3])
        made.counts = np.array(numbers[3:], np.int64)
        return made


def _exponent(low: float, high: float) -> int:
    """The least e with 2**e >= (high - low) / (BINS - 2) and >= max(|low|, |high|) * 2**-22.

    It only grows as the range does.
    """
    span = _ceil_log2((high / 2 - low / 2) / (BINS - 2)) + 1
    largest = _ceil_log2(max(abs(low), abs(high))) + _FINEST
    return max(span, largest, _SMALLEST_EXPONENT)


def _ceil_log2(value: float) -> int:
    if value == 0:
        return _SMALLEST_EXPONENT + _FINEST
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent
