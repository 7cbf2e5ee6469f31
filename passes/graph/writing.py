"""Writing the weights of a model over 2 GB to a file of external data, and giving both files their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import onnx

from passes.graph.external_data import is_external, point, raw_chunks, reference, write_values
from passes.graph.light import bare_copy
from passes.graph.tensors import every_tensor, stored_bytes

__all__ = ["data_file", "put_in_place", "write_data"]

# Tensors of up to so many bytes are saved in the model's own file, beside external data.
_EMBEDDED_BYTES = 1024


def data_file(model: Path) -> Path:
    """The file of external data that belongs to a model's file over 2 GB."""
    return model.with_name(f"{model.name}.data")


def put_in_place(part: Path, target: Path) -> None:
    """Give a model that is written as `part`, and the external data beside it, the names of `target`.

    A kill in between leaves no model at that name, and never an old one beside new weights.
    """
    data = data_file(target)
    moved = data_file(part).exists()
    if moved:
        target.unlink(missing_ok=True)
        os.replace(data_file(part), data)  # noqa: PTH105 - tests inject faults here
    try:
        os.replace(part, target)  # noqa: PTH105
    except OSError:
        if moved:
            data.unlink(missing_ok=True)
        raise


def write_data(proto: onnx.ModelProto, data: Path) -> bytes:
    """Write the weights to a file of external data, one by one, and give the bytes of the model for it.

    What refers to the same values, as tied weights do, refers to the same bytes again.
    """
    written: dict[object, tuple[int, int]] = {}
    light = bare_copy(proto)
    with data.open("wb") as handle:
        for tensor in every_tensor(light):  # those of nodes and nested graphs
            if not _stays(tensor):
                _write_tensor(handle, tensor, tensor, written)
        for tensor in proto.graph.initializer:
            copy = light.graph.initializer.add()
            if _stays(tensor):
                copy.CopyFrom(tensor)
                continue
            for field, value in tensor.ListFields():
                if field.name in ("name", "data_type", "doc_string"):
                    setattr(copy, field.name, value)
                elif field.name in ("dims", "metadata_props"):
                    getattr(copy, field.name).extend(value)
            _write_tensor(handle, tensor, copy, written)
        handle.flush()
        os.fsync(handle.fileno())
    return bytes(light.SerializeToString(deterministic=True))


def _stays(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's values stay in the model's own file."""
    small = not is_external(tensor) and stored_bytes(tensor) <= _EMBEDDED_BYTES
    return small or tensor.data_type == onnx.TensorProto.STRING


def _write_tensor(
    handle: BinaryIO,
    tensor: onnx.TensorProto,
    target: onnx.TensorProto,
    written: dict[object, tuple[int, int]],
) -> None:
    source = reference(tensor)
    place = written.get(source) if source is not None else None
    if place is None:
        place = write_values(handle, raw_chunks(tensor), stored_bytes(tensor))
        if source is not None:
            written[source] = place
    point(target, Path(handle.name).name, *place)
