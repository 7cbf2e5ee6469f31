"""Bit streams to floats, as fast as this machine can: the C++ library where it is there, else numpy.

Both give the same bits. Trellises (runtime_ops/trellis.py) are decoded by numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.library import decode_affine_native, decode_gse_native, native_available

__all__ = ["decode_packed_affine", "decode_packed_gse", "into"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float32]


def decode_packed_gse(
    packed: Array,
    exponents: Array,
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
    out: Float | None = None,
) -> Float:
    """`decode_gse` of runtime_ops/gse.py, into `out` if one is given. Raises ValueError for bad input."""
    if native_available():
        return decode_gse_native(packed, exponents, bits, group_size, exponent_base, shape, out=out)
    return into(out, decode_gse(packed, exponents, bits, group_size, exponent_base, shape))


def decode_packed_affine(
    packed: Array,
    scale: Array,
    zero_point: Array,
    bits: int,
    group_size: int,
    shape: Sequence[int],
    out: Float | None = None,
) -> Float:
    """`decode_affine` of runtime_ops/gse.py, into `out` if one is given. Raises ValueError for bad input."""
    if native_available():
        return decode_affine_native(packed, scale, zero_point, bits, group_size, shape, out=out)
    return into(out, decode_affine(packed, scale, zero_point, bits, group_size, shape))


def into(out: Float | None, values: Float) -> Float:
    """The values, written to `out` where there is one."""
    if out is None:
        return values
    out[...] = values.reshape(out.shape)
    return out
