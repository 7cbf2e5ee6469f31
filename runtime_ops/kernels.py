"""What the C++ library computes, as functions of numpy arrays (through ctypes; no ONNX Runtime involved).

Each has its reference in numpy, named in its docstring, and gives the same bits on every instruction set.
"""

from __future__ import annotations

import math
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

__all__ = [
    "decode_affine_native",
    "decode_gse_native",
    "decode_tcq_native",
    "empty_floats",
    "trellis_native",
]

Float = npt.NDArray[np.float32]
_LINE = 64
_STATES = 1 << 12  # of a trellis


def empty_floats(shape: Sequence[int]) -> Float:
    """float32 that begins with a cache line, where vectors are stored fastest; numpy's arrays need not."""
    count = math.prod(shape)
    held = np.empty(count * 4 + _LINE, np.uint8)
    start = -held.ctypes.data % _LINE
    return held[start : start + count * 4].view(np.float32).reshape(shape)


def _output(shape: Sequence[int], out: Float | None) -> tuple[int, int, Float]:
    """Rows, values a row, and where they go: `out`, or new memory."""
    rows, row_size = geometry(shape)
    return rows, row_size, empty_floats(shape) if out is None else checked_output(out, np.float32, shape)


def decode_gse_native(
    packed: npt.NDArray[np.uint8],
    exponents: npt.NDArray[np.uint8],
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
    *,
    out: Float | None = None,
    isa: str | None = None,
) -> Float:
    """The same as `runtime_ops.gse.decode_gse`, in C++; into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits, group_size=group_size, exponent_base=exponent_base)
    packed = contiguous(packed, np.uint8, "packed")
    exponents = contiguous(exponents, np.uint8, "exponents")
    if packed.size < 1 or exponents.size < 1:
        raise ValueError("packed and exponents hold no bytes")
    rows, row_size, out = _output(shape, out)
    code = library.onnxq_decode_gse(
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
        isa_number(library, isa),
    )
    check(library, code)
    return out


def decode_affine_native(
    packed: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16],
    zero_point: npt.NDArray[np.int8],
    bits: int,
    group_size: int,
    shape: Sequence[int],
    *,
    out: Float | None = None,
    isa: str | None = None,
) -> Float:
    """The same as `runtime_ops.gse.decode_affine`, in C++; into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits, group_size=group_size)
    packed = contiguous(packed, np.uint8, "packed")
    scale = contiguous(scale, np.float16, "scale")
    zero_point = contiguous(zero_point, np.int8, "zero_point")
    rows, row_size, out = _output(shape, out)
    code = library.onnxq_decode_affine(
        packed.ctypes.data,
        packed.size,
        scale.ctypes.data,
        zero_point.ctypes.data,
        min(scale.size, zero_point.size),
        bits,
        rows,
        row_size,
        group_size,
        out.ctypes.data,
        out.size,
        isa_number(library, isa),
    )
    check(library, code)
    return out


def decode_tcq_native(
    packed: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16] | npt.NDArray[np.float32],
    levels: npt.NDArray[np.int8],
    bits: int,
    shape: Sequence[int],
    *,
    out: Float | None = None,
    isa: str | None = None,
) -> Float:
    """The same as `runtime_ops.trellis.decode_tcq`, in C++; into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    check_numbers(bits=bits)
    packed = contiguous(packed, np.uint8, "packed")
    levels = contiguous(levels, np.int8, "levels")
    if scale.dtype not in (np.float16, np.float32):
        raise ValueError(f"scale is {scale.dtype}, neither float16 nor float32")
    scales = np.ascontiguousarray(scale, np.float32)
    rows, row_size, out = _output(shape, out)
    if scales.size != rows or levels.size != _STATES:
        raise ValueError(f"scale must hold {rows} numbers and levels {_STATES}")
    code = library.onnxq_decode_tcq(
        packed.ctypes.data,
        packed.size,
        scales.ctypes.data,
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


def trellis_native(
    values: Float,
    weights: Float,
    levels: Float,
    bits: int,
    start: int | None,
    end: int | None,
    *,
    isa: str | None = None,
) -> npt.NDArray[np.uint16]:
    """The path of `runtime_ops.trellis.trellis_path`, in C++: one stretch, weights at most 1.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    values, weights, levels = (
        contiguous(array, np.float32, name)
        for array, name in ((values, "values"), (weights, "weights"), (levels, "levels"))
    )
    path = np.empty(values.size, np.uint16)
    code = library.onnxq_trellis_path(
        values.ctypes.data,
        weights.ctypes.data,
        values.size,
        levels.ctypes.data,
        bits,
        -1 if start is None else start,
        -1 if end is None else end,
        path.ctypes.data,
        isa_number(library, isa),
    )
    check(library, code)
    return path
