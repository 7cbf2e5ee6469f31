"""The C++ library's decoders to int8 codes, as functions of numpy arrays.

Their references are in runtime_ops/codes.py and trellis.py; every instruction set gives the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime_ops.arguments import (
    check,
    check_numbers,
    checked_output,
    contiguous,
    geometry,
    isa_number,
)
from runtime_ops.library import load_library

__all__ = ["affine_codes_native", "gse_codes_native", "tcq_codes_native"]

Codes = npt.NDArray[np.int8]
Fits = npt.NDArray[np.bool_]
_STATES = 1 << 12  # of a trellis


def _output(shape: Sequence[int], out: Codes | None) -> tuple[int, int, Codes]:
    """Rows, values a row, and where the codes go: `out`, or new memory."""
    rows, row_size = geometry(shape)
    return rows, row_size, np.empty(shape, np.int8) if out is None else checked_output(out, np.int8, shape)


def gse_codes_native(
    packed: npt.NDArray[np.uint8],
    exponents: npt.NDArray[np.uint8],
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
    *,
    out: Codes | None = None,
    isa: str | None = None,
) -> tuple[Codes, npt.NDArray[np.float32], Fits]:
    """The same as `runtime_ops.codes.decode_gse_codes`, in C++; the codes into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits, group_size=group_size, exponent_base=exponent_base)
    packed = contiguous(packed, np.uint8, "packed")
    exponents = contiguous(exponents, np.uint8, "exponents")
    rows, row_size, out = _output(shape, out)
    scale, fits = np.empty(rows, np.float32), np.empty(rows, np.bool_)
    code = library.onnxq_gse_codes(
        packed.ctypes.data,
        packed.size,
        exponents.ctypes.data,
        exponents.size,
        bits,
        rows,
        row_size,
        group_size,
        exponent_base,
        out.ctypes.data,
        out.size,
        scale.ctypes.data,
        fits.ctypes.data,
        rows,
        isa_number(library, isa),
    )
    check(library, code)
    return out, scale, fits


def affine_codes_native(
    packed: npt.NDArray[np.uint8],
    zero_point: npt.NDArray[np.int8],
    bits: int,
    group_size: int,
    shape: Sequence[int],
    *,
    out: Codes | None = None,
    isa: str | None = None,
) -> tuple[Codes, Fits]:
    """The same as `runtime_ops.codes.decode_affine_codes`, in C++; the codes into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits, group_size=group_size)
    packed = contiguous(packed, np.uint8, "packed")
    zero_point = contiguous(zero_point, np.int8, "zero_point")
    rows, row_size, out = _output(shape, out)
    fits = np.empty(rows, np.bool_)
    code = library.onnxq_affine_codes(
        packed.ctypes.data,
        packed.size,
        zero_point.ctypes.data,
        zero_point.size,
        bits,
        rows,
        row_size,
        group_size,
        out.ctypes.data,
        out.size,
        fits.ctypes.data,
        rows,
        isa_number(library, isa),
    )
    check(library, code)
    return out, fits


def tcq_codes_native(
    packed: npt.NDArray[np.uint8],
    levels: npt.NDArray[np.int8],
    bits: int,
    shape: Sequence[int],
    *,
    out: Codes | None = None,
    isa: str | None = None,
) -> Codes:
    """The same as `runtime_ops.trellis.decode_tcq_codes`, in C++; into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits)
    packed = contiguous(packed, np.uint8, "packed")
    levels = contiguous(levels, np.int8, "levels")
    if levels.size != _STATES:
        raise ValueError(f"levels must hold {_STATES} numbers, not {levels.size}")
    rows, row_size, out = _output(shape, out)
    code = library.onnxq_tcq_codes(
        packed.ctypes.data,
        packed.size,
        levels.ctypes.data,
        bits,
        rows,
        row_size,
        out.ctypes.data,
        out.size,
        isa_number(library, isa),
    )
    check(library, code)
    return out
