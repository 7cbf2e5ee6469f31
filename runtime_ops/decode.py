"""Bit streams to floats, as fast as this machine can: the C++ library where it is there, else numpy.

Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.library import decode_affine_native, decode_gse_native, native_available

__all__ = ["decode_packed_affine", "decode_packed_gse"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float32]


def decode_packed_gse(
    packed: Array, exponents: Array, bits: int, group_size: int, exponent_base: int, shape: Sequence[int]
) -> Float:
    """`decode_gse` of runtime_ops/gse.py. Raises ValueError for malformed input."""
    decode = decode_gse_native if native_available() else decode_gse
    return decode(packed, exponents, bits, group_size, exponent_base, shape)


def decode_packed_affine(
    packed: Array, scale: Array, zero_point: Array, bits: int, group_size: int, shape: Sequence[int]
) -> Float:
    """`decode_affine` of runtime_ops/gse.py. Raises ValueError for malformed input."""
    decode = decode_affine_native if native_available() else decode_affine
    return decode(packed, scale, zero_point, bits, group_size, shape)
