"""Values of tensors that are in other files: references, how they are checked, read, written and counted.

A model of more than 2 GB is never in memory as a whole. Its large tensors are *references*: the tensor's
`location` is then the absolute path of the file that holds the values. References come from the model's own
external data (`bind`), or from a temporary file where a pass made new values
(passes/graph/spilling.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from passes.core.errors import ModelFileError
from passes.graph.tensors import every_tensor, stored_bytes

__all__ = [
    "KEPT_BYTES",
    "Reference",
    "bind",
    "element_type",
    "external_files",
    "fill",
    "has_references",
    "is_external",
    "mapped",
    "point",
    "raw_chunks",
    "reference",
    "tensor_array",
    "tensor_digest",
    "write_values",
]

Array = npt.NDArray[Any]
# Tensors of up to so many bytes are always in the model itself: shapes, scalars, biases. Shape inference
# reads values of at most 1,024 elements (passes/graph/inference.py), which fit.
KEPT_BYTES = 2**14
_CHUNK = 2**24
# Offsets at which the values of large and small tensors begin: a page, so that they can be mapped.
_PAGE, _LINE, _LARGE_TENSOR = 4096, 64, 2**16


@dataclass(frozen=True)
class Reference:
    """`length` bytes from `offset` on in the file at `path`."""

    path: Path
    offset: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        """The bytes, some megabytes at a time. Raises ModelFileError where they are no longer there."""
        with self._opened() as handle:
            left = self.length
            while left:
                piece = handle.read(min(left, _CHUNK))
                if not piece:
                    raise self._changed()
                left -= len(piece)
                yield piece

    def read(self) -> npt.NDArray[np.uint8]:
        """All bytes in memory of their own. Raises as `chunks` does."""
        values = np.empty(self.length, np.uint8)
        with self._opened() as handle:
            if handle.readinto(values.data) != self.length:  # type: ignore[attr-defined]
                raise self._changed()
        return values

    def _opened(self) -> BinaryIO:
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise ModelFileError(self.path, f"external data cannot be read ({error.strerror})") from None
        handle.seek(self.offset)
        return handle

    def _changed(self) -> ModelFileError:
        return ModelFileError(self.path, "external data became shorter while it was read; run it again")


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the model does not hold the tensor's values itself."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def reference(tensor: onnx.TensorProto) -> Reference | None:
    """Where a bound tensor's values are; None where the model holds them."""
    if not is_external(tensor):
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Reference(Path(entries["location"]), int(entries["offset"]), int(entries["length"]))


def has_references(proto: onnx.ModelProto) -> bool:
    """Whether any tensor's values are outside of the model."""
    return any(is_external(tensor) for tensor in every_tensor(proto))


def point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make `tensor` refer to values in a file instead of holding them."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def bind(tensor: onnx.TensorProto, file: Path) -> None:
    """Make an external tensor of the model in `file` a reference, after checking what it refers to.

    Raises:
        ModelFileError: the file is missing or outside of the model's folder, or too short for the tensor.
    """

    def refused(problem: str, remedy: str = "export the model again") -> ModelFileError:
        return ModelFileError(file, f"external data of tensor '{tensor.name}' {problem}; {remedy}")

    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(file, entries.get("location", ""))
    if path is None:
        raise refused(f"must be in the model's folder, not at '{entries.get('location', '')}'")
    if not _is_file(path):
        raise refused(f"is missing: there is no file '{path}'", "copy it beside the model")
    if tensor.data_type == onnx.TensorProto.STRING:
        raise refused("are strings, which ONNX does not store outside of a model")
    needed = stored_bytes(tensor)
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", needed) or needed)
    except ValueError:
        raise refused("has an offset or length that is not a number") from None
    if length != needed or offset < 0:
        raise refused(f"is {length} bytes from {offset} on, and its type and shape need {needed}")
    size = path.stat().st_size
    if offset + length > size:
        problem = f"ends at byte {offset + length} of '{path}', which has only {size} bytes"
        raise refused(problem, "copy the whole file")
    if not os.access(path, os.R_OK):
        raise refused(f"cannot be read: no permission to read '{path}'", "change the permission")
    point(tensor, str(path), offset, length)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for the system names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _inside(file: Path, location: str | bytes) -> Path | None:
    """The absolute path of a location; None where it leads out of the model's folder.

    A symbolic link may lead to the folder that the model's own link leads to, as in Hugging Face's cache.
    """
    if not isinstance(location, str) or "\0" in location:  # protobuf hands over what is not UTF-8 as bytes
        return None
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or PureWindowsPath(location).drive or ".." in pure.parts:
        return None
    path = Path(os.path.abspath(file.parent / location))  # noqa: PTH100 - resolve() follows links
    folders = (file.parent.resolve(), file.resolve().parent)
    return path if any(path.resolve().is_relative_to(folder) for folder in folders) else None


def fill(tensor: onnx.TensorProto) -> None:
    """Bring the values of a reference into the tensor itself."""
    source = reference(tensor)
    if source is not None:
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = source.read().tobytes()


def external_files(file: Path, proto: onnx.ModelProto) -> list[Path]:
    """The files that a model refers to which was read from `file` without its external data, each once.

    Locations that lead out of the model's folder, and files that are not there, are left out.
    """
    found: dict[Path, None] = {}
    for tensor in every_tensor(proto):
        if is_external(tensor):
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            path = _inside(file, location)
            if path is not None and _is_file(path):
                found[path] = None
    return list(found)


def element_type(tensor: onnx.TensorProto) -> np.dtype[Any]:
    """The numpy type that `tensor_array` gives."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _whole_bytes(tensor: onnx.TensorProto) -> bool:
    """Whether an element of the tensor is an element of its numpy array, byte for byte."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return stored_bytes(tensor) == count * element_type(tensor).itemsize


def tensor_array(tensor: onnx.TensorProto) -> Array:
    """The tensor's values, read from their file where the model does not hold them."""
    source = reference(tensor)
    if source is None:
        return numpy_helper.to_array(tensor)
    if _whole_bytes(tensor):
        return source.read().view(element_type(tensor)).reshape(tuple(tensor.dims))
    held = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    held.raw_data = source.read().tobytes()
    return numpy_helper.to_array(held)


def mapped(tensor: onnx.TensorProto) -> Array:
    """As `tensor_array`, but read-only and mapped from the file where that is possible."""
    source = reference(tensor)
    if source is None or not _whole_bytes(tensor) or source.offset % element_type(tensor).itemsize:
        return tensor_array(tensor)
    shape = tuple(tensor.dims)
    return np.memmap(source.path, element_type(tensor), "r", source.offset, shape)


def raw_chunks(tensor: onnx.TensorProto) -> Iterator[bytes | memoryview]:
    """The tensor's values as raw data, piece by piece."""
    source = reference(tensor)
    if source is not None:
        yield from source.chunks()
    elif tensor.HasField("raw_data"):
        yield tensor.raw_data
    else:
        # Typed fields hold one number an element, or packed sub-byte types; onnx knows which.
        values = numpy_helper.to_array(tensor)
        yield numpy_helper.from_array(values, tensor.name).raw_data


def tensor_digest(tensor: onnx.TensorProto) -> bytes:
    """SHA-256 of the tensor: its name, type, shape and values, wherever they are."""
    if not is_external(tensor):
        return hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()
    total = hashlib.sha256(repr((tensor.name, tensor.data_type, list(tensor.dims))).encode())
    for piece in raw_chunks(tensor):
        total.update(piece)
    return total.digest()


def write_values(handle: BinaryIO, pieces: Iterable[bytes | memoryview], length: int) -> tuple[int, int]:
    """Append values of `length` bytes to an open file, aligned. Returns (offset, length).

    Raises:
        OSError: the file cannot be written.
    """
    end = handle.seek(0, os.SEEK_END)
    unit = _PAGE if length >= _LARGE_TENSOR else _LINE
    offset = -(-end // unit) * unit
    handle.write(bytes(offset - end))
    return offset, sum(handle.write(piece) for piece in pieces)
