"""The C++ library: found beside the package, loaded when first needed, typed.

It holds the decoders and the search of a trellis (called here through ctypes, no ONNX Runtime involved) and
the custom operators GSEDequantizeLinear and PackedDequantizeLinear, which `register` hands to a session.
`runtime_ops.build` makes it. Where it is missing everything still runs, slower: numpy decodes and searches,
and a file's own functions stand in for the operators.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LibraryMissingError",
    "decode_affine_native",
    "decode_gse_native",
    "decode_tcq_native",
    "empty_floats",
    "isas",
    "library_path",
    "library_status",
    "load_library",
    "native_available",
    "register",
    "trellis_native",
]

Float = npt.NDArray[np.float32]
_ABI = 2
_LINE = 64
_BUILD_HINT = "`python -m runtime_ops.build` builds it"


class LibraryMissingError(RuntimeError):
    """The C++ library is not there, or cannot be used; the text says why and what to do."""


def library_path() -> Path | None:
    """The library's file: $ONNXQ_LIBRARY, else beside the package; None where there is none.

    The package's own `__path__` is asked: a checkout in front of an installed package has its own library.
    """
    wished = os.environ.get("ONNXQ_LIBRARY")
    if wished:
        return Path(wished)
    # Not imported: the package itself imports this module.
    return _beside(tuple(sys.modules["runtime_ops"].__path__))


_FOUND: dict[tuple[str, ...], Path] = {}


def _beside(folders: tuple[str, ...]) -> Path | None:
    """The library in one of the folders. Only a find is remembered: the next look may come after a build."""
    if folders not in _FOUND:
        # Here, so that `python -m runtime_ops.build` is not imported by the package that it belongs to.
        from runtime_ops.build import LIBRARY_NAME

        files = [Path(folder) / LIBRARY_NAME for folder in folders]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            return None
        _FOUND[folders] = found
    return _FOUND[folders]


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
        version = library.onnxq_abi_version()
    except (OSError, AttributeError) as error:
        raise LibraryMissingError(f"{path} cannot be loaded ({error}); {_BUILD_HINT} anew") from error
    if version != _ABI:
        raise LibraryMissingError(f"{path} is of another version of onnxq; {_BUILD_HINT} anew")
    size, number = ctypes.c_size_t, ctypes.c_int
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    packed = (pointer, size)
    geometry = (number, wide, wide, wide)  # bits, rows, row_size, group_size
    output = (pointer, size, number)  # out, out_count, isa
    library.onnxq_decode_gse.argtypes = (*packed, pointer, size, *geometry, number, *output)
    library.onnxq_decode_affine.argtypes = (*packed, pointer, pointer, size, *geometry, *output)
    # packed, scale, levels, bits, rows, row_size, out, out_count
    library.onnxq_decode_tcq.argtypes = (*packed, pointer, pointer, number, wide, wide, pointer, size)
    # values, weights, count, levels, bits, start, end, path, isa
    library.onnxq_trellis_path.argtypes = (
        pointer,
        pointer,
        size,
        pointer,
        number,
        number,
        number,
        pointer,
        number,
    )
    for name in ("onnxq_error", "onnxq_isa_name"):
        getattr(library, name).argtypes = (number,)
        getattr(library, name).restype = ctypes.c_char_p
    library.onnxq_isa_supported.argtypes = (number,)
    return library


def _reason() -> str:
    """What the installation noted when it could not build the library."""
    from runtime_ops.build import REASON_NAME

    for folder in sys.modules["runtime_ops"].__path__:
        note = Path(folder) / REASON_NAME
        if note.is_file():
            return f" ({note.read_text(encoding='utf-8').strip()})"
    return ""


def load_library() -> ctypes.CDLL:
    """The library, its functions typed. Raises LibraryMissingError."""
    path = library_path()
    if path is None:
        raise LibraryMissingError(f"the C++ library was not built{_reason()}; {_BUILD_HINT}")
    return _load(path)


def native_available() -> bool:
    """Whether the library is there and loads."""
    try:
        load_library()
    except LibraryMissingError:
        return False
    return True


@functools.cache
def _isa_names(library: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while (name := library.onnxq_isa_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def isas() -> list[str]:
    """Instruction sets that the library and this processor have; none where there is no library."""
    try:
        library = load_library()
    except LibraryMissingError:
        return []
    return [name for i, name in enumerate(_isa_names(library)) if library.onnxq_isa_supported(i)]


def library_status() -> dict[str, Any]:
    """For people: `built`, then `path`, `isa` (in use) and `isas`, or one sentence `reason`."""
    try:
        library = load_library()
    except LibraryMissingError as error:
        return {"built": False, "path": None, "isa": None, "isas": [], "reason": str(error)}
    best = library.onnxq_best_isa()
    names = _isa_names(library)
    status = {"built": True, "path": str(library_path()), "isas": isas(), "reason": ""}
    if best < 0:
        status["reason"] = f"ONNXQ_ISA={os.environ.get('ONNXQ_ISA')} is not among {', '.join(isas())}"
    return {**status, "isa": names[best] if best >= 0 else None}


def _isa_number(library: ctypes.CDLL, isa: str | None) -> int:
    if isa is None:
        return -1
    names = _isa_names(library)
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
    scale: npt.NDArray[np.float16],
    levels: npt.NDArray[np.int8],
    bits: int,
    shape: Sequence[int],
    *,
    out: Float | None = None,
) -> Float:
    """The same as `runtime_ops.trellis.decode_tcq`, in C++; into `out` where one is given.

    Raises ValueError for malformed input, LibraryMissingError where there is no library.
    """
    library = load_library()
    _fits(bits=bits)
    packed = _contiguous(packed, np.uint8, "packed")
    levels = _contiguous(levels, np.int8, "levels")
    scales = np.ascontiguousarray(_contiguous(scale, np.float16, "scale"), np.float32)
    rows, row_size, out = _prepare(shape, out)
    if scales.size != rows or levels.size != 1 << 12:
        raise ValueError(f"scale must hold {rows} numbers and levels {1 << 12}")
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


def register(session_options: Any) -> None:
    """Make the operators known to sessions with these onnxruntime.SessionOptions.

    A registered operator wins over the model-local function of a file. Raises LibraryMissingError.
    """
    load_library()  # loads, so that a broken file is told apart from a refusing ONNX Runtime
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's errors have no class in common
        raise LibraryMissingError(f"ONNX Runtime refuses {path}: {error}") from error
