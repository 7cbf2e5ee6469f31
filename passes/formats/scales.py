"""Which float type the scales of a weight are stored in: the one place that decides it.

Bit streams of integers and trellises, and every format of a float16 weight, take float16 scales where they
move the largest code of b bits by an eighth of a step at most, which holds from 2^(b - 23) to 65504. The
steps of an output channel add up, so that the largest of its groups counts. A weight with a channel outside
of that has all its scales in float32. Encoders and rounding (`fits_half`, `represented`) choose numbers of
that type, so that the writer only has to look at them (`as_stored`): it never rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_stored", "bias_floor", "fits_half", "represented"]

# Codes of int32 biases stay below it (passes/placement/biases.py).
_BIAS_LIMIT = np.float64(2**30)
_MOST = float(np.finfo(np.float16).max)


def fits_half(scale: npt.NDArray[Any], bits: int) -> bool:
    """Whether float16 holds all scales of a weight well, [C, ...] with output channels first.

    0, the scale of nothing but zeros, is exact.
    Long codes are no more exact than float16 itself, whatever the scale: 8 bits stand for them.
    """
    least = 2.0 ** (min(bits, 8) - 23)
    largest = scale.reshape(len(scale), -1).max(axis=1)
    return bool(np.all((largest == 0) | ((largest >= least) & (largest <= _MOST))))


def represented(scale: npt.NDArray[Any], half: bool) -> npt.NDArray[np.float64]:
    """Scales as numbers of float16 (`half`) or float32, none below the least that has a use there.

    A scale that rounding tries may lie a little outside of what `fits_half` allows.
    """
    if half:
        held = np.clip(scale, 2.0**-24, _MOST).astype(np.float16)
        return np.asarray(held, np.float64)
    with np.errstate(over="ignore"):
        wide = np.asarray(scale, np.float32)
    limits = np.finfo(np.float32)
    return np.asarray(np.clip(wide, limits.tiny, limits.max), np.float64)


def as_stored(scale: npt.NDArray[Any]) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
    """Scales in float16 where that is exact, else in float32."""
    with np.errstate(over="ignore"):
        half = np.asarray(scale, np.float16)
    wide = np.asarray(scale, np.float32)
    return half if np.array_equal(half.astype(np.float32), wide) else wide


def bias_floor(bias: npt.NDArray[np.float64], input_scale: float) -> npt.NDArray[np.float32]:
    """Least weight scale per channel [C] that keeps the codes of the bias in the range of int32."""
    return np.asarray(np.abs(bias) / (input_scale * _BIAS_LIMIT), np.float32)
