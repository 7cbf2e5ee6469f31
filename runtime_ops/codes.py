"""Packed weights as int8 codes, for the integer kernels of a runtime: the numpy reference.

A row is an output channel, and its values are exactly codes * scale where the row fits:

    GSE       codes = m * 2^(c - l), scale = 2^(exponent_base + l), l the least exponent code c among those
              groups of the row that are not all zero; a row fits if every code lies in -128 to 127, which is
              always so where the exponents' spread and the bits add up to 8 at most
    integers  codes = m - zero_point; the scales stay as they are, one a group; a row fits if every code lies
              in -128 to 127, which is always so with zero points in the range of codes of 7 bits or less
    TCQ       codes = levels[w] (`decode_tcq_codes` of runtime_ops/trellis.py); every row fits

A row that does not fit has codes of 0 and, of GSE, a scale of NaN: the caller decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.bitpack import unpack_bits
from runtime_ops.gse import EXPONENT_BITS, check_exponent_base, each_value, row_geometry

__all__ = ["decode_affine_codes", "decode_gse_codes"]

Codes = npt.NDArray[np.int8]
Fits = npt.NDArray[np.bool_]


def _fitted(wide: npt.NDArray[Any], shape: Sequence[int]) -> tuple[Codes, Fits]:
    """Codes [R, K] of any integer type as int8 of `shape`, and which rows fit."""
    fits = np.asarray(((wide >= -128) & (wide <= 127)).all(axis=1))
    codes = np.where(fits[:, np.newaxis], wide, 0).astype(np.int8)
    return codes.reshape(shape), fits


def decode_gse_codes(
    packed: npt.NDArray[np.uint8],
    exponents: npt.NDArray[np.uint8],
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
) -> tuple[Codes, npt.NDArray[np.float32], Fits]:
    """GSE as codes.

    Args:
        packed, exponents: The bit streams of mantissas and exponent codes.
        shape: Of the weight, output channels first.

    Returns:
        Codes, int8 of `shape`; scale, float32 [R]; fits, bool [R].

    Raises:
        ValueError: A stream is too short, or a number is out of range.
    """
    rows, row_size, groups = row_geometry(shape, group_size)
    check_exponent_base(exponent_base, bits)
    mantissas = unpack_bits(packed, bits, rows * row_size, signed=True).reshape(rows, row_size)
    steps = unpack_bits(exponents, EXPONENT_BITS, rows * groups, signed=False).reshape(rows, groups)
    own = each_value(steps.astype(np.int32), group_size, row_size)
    lowest = np.where(mantissas != 0, own, 1 << EXPONENT_BITS).min(axis=1, initial=1 << EXPONENT_BITS)
    lowest = np.where(lowest < 1 << EXPONENT_BITS, lowest, 0)
    # A zero may lie below the least exponent of the others, and stays one.
    by = np.where(mantissas != 0, own - lowest[:, np.newaxis], 0)
    codes, fits = _fitted(mantissas.astype(np.int64) << by, shape)
    scale = np.ldexp(np.float32(1), exponent_base + lowest).astype(np.float32)
    return codes, np.where(fits, scale, np.float32(np.nan)), fits


def decode_affine_codes(
    packed: npt.NDArray[np.uint8],
    zero_point: npt.NDArray[np.int8],
    bits: int,
    group_size: int,
    shape: Sequence[int],
) -> tuple[Codes, Fits]:
    """Packed integers less their zero points.

    Args:
        packed: The bit stream of codes.
        zero_point: One a group [R, n].
        shape: Of the weight, output channels first.

    Returns:
        Codes, int8 of `shape`; fits, bool [R].

    Raises:
        ValueError: The stream or the zero points are too short, or a number is out of range.
    """
    rows, row_size, groups = row_geometry(shape, group_size)
    if not 2 <= bits <= 8:
        raise ValueError(f"packed integers have 2 to 8 bits, not {bits}")
    if zero_point.size < rows * groups:
        raise ValueError(f"{rows * groups} groups need as many zero points")
    mantissas = unpack_bits(packed, bits, rows * row_size, signed=True).reshape(rows, row_size)
    zeros = zero_point.reshape(-1)[: rows * groups].reshape(rows, groups).astype(np.int16)
    return _fitted(mantissas - each_value(zeros, group_size, row_size), shape)
