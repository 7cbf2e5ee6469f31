"""Bit streams to floats or to int8 codes, as fast as this machine can.

The C++ library decodes where it is there, else numpy. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.code_kernels import affine_codes_native, gse_codes_native, tcq_codes_native
from runtime_ops.codes import decode_affine_codes, decode_gse_codes
from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.kernels import decode_affine_native, decode_gse_native, decode_tcq_native
from runtime_ops.library import native_available
from runtime_ops.trellis import decode_tcq, decode_tcq_codes

__all__ = [
    "decode_packed_affine",
    "decode_packed_affine_codes",
    "decode_packed_gse",
    "decode_packed_gse_codes",
    "decode_packed_tcq",
    "decode_packed_tcq_codes",
]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int8]
Fits = npt.NDArray[np.bool_]
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
    return _into(out, decode_gse(packed, exponents, bits, group_size, exponent_base, shape))


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
    # The library reads float16 scales; float32 ones, of weights that float16 cannot hold, are rare.
    if native_available() and scale.dtype == np.float16:
        return decode_affine_native(packed, scale, zero_point, bits, group_size, shape, out=out)
    return _into(out, decode_affine(packed, scale, zero_point, bits, group_size, shape))


def decode_packed_tcq(
    packed: Array,
    scale: Array,
    levels: Array,
    bits: int,
    shape: Sequence[int],
    out: Float | None = None,
) -> Float:
    """`decode_tcq` of runtime_ops/trellis.py, into `out` if one is given. Raises ValueError for bad input."""
    if native_available():
        return decode_tcq_native(packed, scale, levels, bits, shape, out=out)
    return _into(out, decode_tcq(packed, scale, levels, bits, shape))


def decode_packed_gse_codes(
    packed: Array,
    exponents: Array,
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
) -> tuple[Codes, Float, Fits]:
    """`decode_gse_codes` of runtime_ops/codes.py: codes, scales and which rows fit.

    Raises ValueError for bad input.
    """
    decode = gse_codes_native if native_available() else decode_gse_codes
    return decode(packed, exponents, bits, group_size, exponent_base, shape)


def decode_packed_affine_codes(
    packed: Array, zero_point: Array, bits: int, group_size: int, shape: Sequence[int]
) -> tuple[Codes, Fits]:
    """`decode_affine_codes` of runtime_ops/codes.py: codes and which rows fit.

    Raises ValueError for bad input.
    """
    decode = affine_codes_native if native_available() else decode_affine_codes
    return decode(packed, zero_point, bits, group_size, shape)


def decode_packed_tcq_codes(packed: Array, levels: Array, bits: int, shape: Sequence[int]) -> Codes:
    """`decode_tcq_codes` of runtime_ops/trellis.py: the int8 levels. Raises ValueError for bad input."""
    decode = tcq_codes_native if native_available() else decode_tcq_codes
    return decode(packed, levels, bits, shape)


def _into(out: Float | None, values: Float) -> Float:
    if out is None:
        return values
    out[...] = values.reshape(out.shape)
    return out
