"""Integer formats: the numpy reference for affine quantization, real = scale * (code - zero_point).

Covers 2 to 8 and 16 bits, signed and unsigned, one scale per tensor, per channel or per block.
Equations: ONNX QuantizeLinear/DequantizeLinear (round half to even, saturate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "IntegerFormat",
    "QuantizedTensor",
    "affine_parameters",
    "dequantize",
    "quantize",
    "symmetric_scale",
]

Float = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]  # int8, uint8, int16 or uint16

# The least squares search of symmetric scales: shrink factors of max|w|, coarse to fine enough for 2 bits.
_SHRINK = np.linspace(1.0, 0.3, 71, dtype=np.float32)
# Values that scales are searched for at a time: what is tried stays in the processor's cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class IntegerFormat:
    """`bits` bits, two's complement when signed; `narrow` drops the most negative code."""

    bits: int
    signed: bool = True
    narrow: bool = False

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def container(self) -> np.dtype[Any]:
        """The smallest numpy dtype that holds a code: 8 or 16 bits wide."""
        width = 8 if self.bits <= 8 else 16
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes with their scales; `scale` and `zero_point` broadcast against `codes` (blocks expanded).

    codes: container dtype, the tensor's shape. scale: float32. zero_point: container dtype.
    """

    codes: Codes
    scale: Float
    zero_point: Codes
    format: IntegerFormat


def affine_parameters(low: npt.ArrayLike, high: npt.ArrayLike, fmt: IntegerFormat) -> tuple[Float, Codes]:
    """Scale and zero point of an asymmetric format for the real range [low, high], widened to hold 0.

    Zero is exactly representable, as QuantizeLinear requires for padding.
    """
    # float64, since the difference of two float32 numbers may leave float32.
    bottom = np.minimum(np.asarray(low, np.float64), 0)
    top = np.maximum(np.asarray(high, np.float64), 0)
    scale = ((top - bottom) / (fmt.highest - fmt.lowest)).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    zero_point = np.clip(np.rint(fmt.lowest - bottom / scale), fmt.lowest, fmt.highest)
    return scale, zero_point.astype(fmt.container)


def symmetric_scale(values: Float, fmt: IntegerFormat, axes: tuple[int, ...], search: bool) -> Float:
    """Scale of a symmetric format over `axes` (dimensions kept): max|w|/highest, or by least squares.

    search: pick, per scale, the shrink factor of max|w| in [0.3, 1] with the least squared error.
    An all-zero group gets scale 1, so that it encodes exactly.
    """
    magnitude = np.abs(values).max(axis=axes, keepdims=True).astype(np.float32)
    top = np.float32(max(fmt.highest, 1))
    scale = np.where(magnitude > 0, magnitude / top, np.float32(1)).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    if not search:
        return scale
    if 0 in axes:
        return _least_squares(values, scale, fmt, axes)
    best = np.empty_like(scale)
    step = max(_CHUNK * len(values) // max(values.size, 1), 1)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        best[part] = _least_squares(values[part], scale[part], fmt, axes)
    return best


def _least_squares(values: Float, scale: Float, fmt: IntegerFormat, axes: tuple[int, ...]) -> Float:
    """The scales times the shrink factors of least squared error."""
    best, best_error = scale, None
    for factor in _SHRINK:
        trial = np.maximum(scale * factor, np.finfo(np.float32).tiny)
        codes = np.clip(np.rint(values / trial), fmt.lowest, fmt.highest)
        error = np.square(codes * trial - values, dtype=np.float64).sum(axis=axes, keepdims=True)
        if best_error is None:
            best_error = error
            continue
        better = error < best_error
        best = np.where(better, trial, best)
        best_error = np.where(better, error, best_error)
    return best


def quantize(values: Float, scale: Float, zero_point: Codes, fmt: IntegerFormat) -> Codes:
    """Codes of `values`: round half to even, saturated to the format's range; container dtype."""
    codes = np.rint(values / scale) + zero_point.astype(np.float32)
    coded: Codes = np.clip(codes, fmt.lowest, fmt.highest).astype(fmt.container)
    return coded


def dequantize(codes: Codes, scale: Float, zero_point: Codes) -> Float:
    """scale * (codes - zero_point) in float32, as DequantizeLinear computes it."""
    return ((codes.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale).astype(
        np.float32
    )
