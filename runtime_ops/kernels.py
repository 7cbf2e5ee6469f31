"""What the C++ library computes, as functions of numpy arrays (through ctypes; no ONNX Runtime involved).

Each has its reference in numpy, named in its docstring, and gives the same bits on every instruction set.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.library import isa_names, load_library

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


def _isa_number(library: ctypes.CDLL, isa: str | None) -> int:
    if isa is None:
        return -1
    names = isa_names(library)
    if isa not in names:
        raise ValueError(f"the instruction sets are {', '.join(names)}, not {isa}")
    return names.index(isa)


def _contiguous(array: npt.NDArray[Any], dtype: npt.DTypeLike, name: str) -> npt.NDArray[Any]:
    given = np.asarray(array)
    if given.dtype != dtype:
        raise ValueError(f"{name} is {given.dtype}, not {np.dtype(dtype)}")
    return np.ascontiguousarray(given)


def empty_floats(shape: Sequence[int]) -> Float:
    """float32 that begins with a cache line, where vectors are stored fastest; numpy's arrays need not."""
    count = math.prod(shape)
    held = np.empty(count * 4 + _LINE, np.uint8)
    start = -held.ctypes.data % _LINE
    return held[start : start + count * 4].view(np.float32).reshape(shape)


def _prepare(shape: Sequence[int], out: Float | None) -> tuple[int, int, Float]:
    sizes = [int(size) for size in shape]
    if not sizes or min(sizes) < 1:
        raise ValueError("shape must have at least one axis and only positive sizes")
    if out is None:
        out = empty_floats(sizes)
    elif out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writable contiguous float32 array")
    elif out.size != math.prod(sizes):
        raise ValueError(f"out has {out.size} values, not {math.prod(sizes)}")
    return sizes[0], math.prod(sizes[1:]), out


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise ValueError(library.onnxq_error(code).decode())


def _fits(**numbers: int) -> None:
    """ctypes would cut a number that is too long, silently."""
    for name, number in numbers.items():
        if not -(2**31) <= number < 2**31 if name != "group_size" else not -(2**63) <= number < 2**63:
            raise ValueError(f"{name} {number} is out of range")


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
    _fits(bits=bits, group_size=group_size, exponent_base=exponent_base)
    packed = _contiguous(packed, np.uint8, "packed")
    exponents = _contiguous(exponents, np.uint8, "exponents")
    if packed.size < 1 or exponents.size < 1:
        raise ValueError("packed and exponents hold no bytes")
    rows, row_size, out = _prepare(shape, out)
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
        _isa_number(library, isa),
    )
    _check(library, code)
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
    _fits(bits=bits, group_size=group_size)
    packed = _contiguous(packed, np.uint8, "packed")
    scale = _contiguous(scale, np.float16, "scale")
    zero_point = _contiguous(zero_point, np.int8, "zero_point")
    rows, row_size, out = _prepare(shape, out)
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
        _isa_number(library, isa),
    )
    _check(library, code)
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
    _fits(bits=bits)
    packed = _contiguous(packed, np.uint8, "packed")
    levels = _contiguous(levels, np.int8, "levels")
    if scale.dtype not in (np.float16, np.float32):
        raise ValueError(f"scale is {scale.dtype}, neither float16 nor float32")
    scales = np.ascontiguousarray(scale, np.float32)
    rows, row_size, out = _prepare(shape, out)
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
        _isa_number(library, isa),
    )
    _check(library, code)
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
        _contiguous(array, np.float32, name)
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
        _isa_number(library, isa),
    )
    _check(library, code)
    return path
