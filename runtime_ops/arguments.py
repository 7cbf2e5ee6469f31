"""What every call of the C++ library checks before pointers and lengths cross the boundary."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.library import isa_names

__all__ = ["check", "check_numbers", "checked_output", "contiguous", "geometry", "isa_number"]


def isa_number(library: ctypes.CDLL, isa: str | None) -> int:
    if isa is None:
        return -1
    names = isa_names(library)
    if isa not in names:
        raise ValueError(f"the instruction sets are {', '.join(names)}, not {isa}")
    return names.index(isa)


def contiguous(array: npt.NDArray[Any], dtype: npt.DTypeLike, name: str) -> npt.NDArray[Any]:
    given = np.asarray(array)
    if given.dtype != dtype:
        raise ValueError(f"{name} is {given.dtype}, not {np.dtype(dtype)}")
    return np.ascontiguousarray(given)


def geometry(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and values a row of a weight. Raises ValueError for a shape of no values."""
    sizes = [int(size) for size in shape]
    if not sizes or min(sizes) < 1:
        raise ValueError("shape must have at least one axis and only positive sizes")
    return sizes[0], math.prod(sizes[1:])


def checked_output(out: npt.NDArray[Any], dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
    """`out`, where values of `shape` may be written to. Raises ValueError where they may not."""
    if out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable contiguous {np.dtype(dtype)} array")
    if out.size != math.prod(shape):
        raise ValueError(f"out has {out.size} values, not {math.prod(shape)}")
    return out


def check(library: ctypes.CDLL, code: int) -> None:
    """Raises ValueError with the library's sentence for a status that is not 0."""
    if code:
        raise ValueError(library.onnxq_error(code).decode())


def check_numbers(**numbers: int) -> None:
    """Raises ValueError for numbers that ctypes would cut silently."""
    for name, number in numbers.items():
        if not -(2**31) <= number < 2**31 if name != "group_size" else not -(2**63) <= number < 2**63:
            raise ValueError(f"{name} {number} is out of range")
