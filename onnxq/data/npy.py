"""Arrays of .npy and .npz files, read by their header: what it declares is checked before memory is taken.

Pickled objects are never read. The declared shape must fill the file exactly, no more and no less.
"""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxq.data.archive import ARCHIVE_ERRORS, checked_members
from onnxq.data.limits import check_unpacked
from passes.core.errors import DataError

__all__ = ["Header", "read_header", "read_npy", "read_npz", "write_npz"]

_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    SyntaxError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class Header:
    """What the head of a .npy declares. offset: where the numbers begin, in bytes."""

    shape: tuple[int, ...]
    column_major: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        """The numbers in their shape."""
        if self.column_major:
            return flat.reshape(self.shape[::-1]).transpose()
        return flat.reshape(self.shape)


def read_header(file: IO[bytes], size: int, origin: str) -> Header:
    """The header of an open .npy file of `size` bytes; the file is left where the numbers begin.

    Raises:
        DataError: it is not a .npy, holds objects, or declares more or fewer numbers than there are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy remarks on headers that Python 2 wrote
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, column_major, dtype = read(file)
    except _ERRORS as error:
        raise DataError(
            f"{origin}: cannot be read as an array ({_line(error)}); save it with numpy.save."
        ) from None
    if dtype.hasobject:
        raise DataError(f"{origin}: it holds Python objects, which are never read; save an array of numbers.")
    header = Header(tuple(shape), bool(column_major), dtype, file.tell())
    if any(not isinstance(length, int) or length < 0 for length in header.shape):
        raise DataError(f"{origin}: its header declares a shape that no array has; save it with numpy.save.")
    declared, there = header.count * dtype.itemsize, size - header.offset
    if declared != there:
        raise DataError(
            f"{origin}: its header declares {declared} bytes but {there} follow; the file is cut off or "
            "damaged."
        )
    return header


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz in memory, by name.

    Raises:
        DataError: it is not a .npz, or unpacks to more than it may.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in checked_members(archive, str(path)):
                key = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    header = read_header(file, member.file_size, f"{path}:{key}")
                    flat = np.frombuffer(file.read(), header.dtype, header.count)
                arrays[key] = header.shaped(flat)
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({_line(error)}); save it with numpy.savez."
        ) from error
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], origin: str) -> None:
    """Write arrays as numpy.savez does, under any name (numpy's own refuses `file`).

    Raises:
        DataError: one holds Python objects; names `origin`.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise DataError(f"{origin}: '{name}' holds Python objects; give arrays of numbers.")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)


def read_npy(path: Path, origin: str) -> NDArray[Any]:
    """A whole .npy in memory."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            check_unpacked(origin, size, size)
            header = read_header(file, size, origin)
            return header.shaped(np.fromfile(file, header.dtype, header.count))
    except OSError as error:
        raise DataError(f"{origin}: cannot be read ({error.strerror or error}); check the file.") from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
