"""The C++ library: found beside the package, loaded when first needed, typed.

It holds the decoders and the search of a trellis (runtime_ops/kernels.py calls them) and the custom operators
GSEDequantizeLinear and PackedDequantizeLinear, which `register` hands to a session. `runtime_ops.build` makes
it. Where it is missing everything still runs, slower: numpy decodes and searches, and a file's own functions
stand in for the operators.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "LibraryMissingError",
    "isa_names",
    "isas",
    "library_path",
    "library_status",
    "load_library",
    "native_available",
    "register",
]

_ABI = 3
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
    # packed, scale, levels, bits, rows, row_size, then the output
    library.onnxq_decode_tcq.argtypes = (*packed, pointer, pointer, number, wide, wide, *output)
    # The same as codes: scales are not read, and what a row has is written: a scale, a byte, how many.
    library.onnxq_gse_codes.argtypes = (
        *(*packed, pointer, size, *geometry, number),
        *(pointer, size, pointer, pointer, size, number),
    )
    library.onnxq_affine_codes.argtypes = (
        *(*packed, pointer, size, *geometry),
        *(pointer, size, pointer, size, number),
    )
    library.onnxq_tcq_codes.argtypes = (*packed, pointer, number, wide, wide, *output)
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
def isa_names(library: ctypes.CDLL) -> tuple[str, ...]:
    """All that it may have been compiled for, by their numbers."""
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
    return [name for i, name in enumerate(isa_names(library)) if library.onnxq_isa_supported(i)]


def library_status() -> dict[str, Any]:
    """For people: `built`, then `path`, `isa` (in use) and `isas`, or one sentence `reason`."""
    try:
        library = load_library()
    except LibraryMissingError as error:
        return {"built": False, "path": None, "isa": None, "isas": [], "reason": str(error)}
    best = library.onnxq_best_isa()
    names = isa_names(library)
    status = {"built": True, "path": str(library_path()), "isas": isas(), "reason": ""}
    if best < 0:
        status["reason"] = f"ONNXQ_ISA={os.environ.get('ONNXQ_ISA')} is not among {', '.join(isas())}"
    return {**status, "isa": names[best] if best >= 0 else None}


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
