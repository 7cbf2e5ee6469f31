"""Loading, checking and saving: the boundary between files and passes.

A `Model` is an ONNX ModelProto and the name that messages call it. Passes treat it as immutable.
The large tensors of a model over 2 GB stay in its files and are read when a pass wants their values
(passes/graph/external_data.py); it is saved with one file of external data beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, EncodeError

from passes.core.errors import InvalidModelError, ModelFileError, OutputError
from passes.graph.admission import admit
from passes.graph.alias import has_alias, write_out_alias
from passes.graph.checking import Refusal, full_check
from passes.graph.external_data import (
    KEPT_BYTES,
    bind,
    external_files,
    fill,
    has_references,
    is_external,
    point,
    raw_chunks,
    reference,
    write_values,
)
from passes.graph.light import bare_copy, flattened, without_values
from passes.graph.scratch import scratch_folder
from passes.graph.tensors import every_graph, every_tensor, function_tensors, stored_bytes

__all__ = [
    "Model",
    "Step",
    "check",
    "every_graph",
    "is_large",
    "load",
    "model_files",
    "normalized",
    "on_disk",
    "read",
    "save",
    "serialize",
    "size_on_disk",
]

# Protobuf refuses messages of 2 GiB; leave room for the graph itself.
LARGE = 2**31 - 2**24
# Tensors of up to so many bytes are saved in the model's own file, beside external data.
_EMBEDDED_BYTES = 1024


# Models between two rewrites are kept up to this size, so that a rewrite at fault can be named.
_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Step:
    """One rewrite in the history of a model.

    Attributes:
        name: the pass. exact: whether it claims to keep the function that the model computes.
        before: the model that it was applied to; None where that was too large to keep.
    """

    name: str
    exact: bool
    before: Model | None


@dataclass(frozen=True)
class Model:
    """An ONNX model, what to call it in messages (its path, usually), and the rewrites that made it."""

    proto: onnx.ModelProto
    name: str = "model"
    history: tuple[Step, ...] = field(default=(), compare=False, repr=False)

    def opset(self, domain: str = "") -> int:
        """Version of `domain` that the model imports; 0 where it imports none."""
        aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return max((o.version for o in self.proto.opset_import if o.domain in aliases), default=0)

    def with_proto(self, proto: onnx.ModelProto) -> Model:
        return replace(self, proto=proto)

    @property
    def origin(self) -> Model:
        """The model that the first rewrite was given; the model itself where there was none."""
        first = self.history[0].before if self.history else None
        return first or self

    def rewritten(self, name: str, before: Model, *, exact: bool) -> Model:
        """This model, remembered as what the rewrite `name` made of `before`."""
        small = not before.history or (not is_large(before.proto) and before.proto.ByteSize() <= _KEPT_BYTES)
        return replace(self, history=(*before.history, Step(name, exact, before if small else None)))

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    def with_metadata(self, **entries: str) -> Model:
        """A copy whose metadata_props hold `entries` (key `onnxq.NAME`) beside the old ones."""
        merged = self.metadata | {f"onnxq.{key}": value for key, value in entries.items()}
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.metadata_props[:]
        for key in merged:
            proto.metadata_props.add(key=key, value=merged[key])
        return self.with_proto(proto)


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model and check it (passes/graph/admission.py). Large tensors beyond 2 GB stay in their files.

    Warns with a ModelWarning where ONNX Runtime accepts what the ONNX checker refuses.

    Raises:
        ModelFileError: the file is missing, truncated, not ONNX, or lacks its data.
        InvalidModelError: neither the ONNX checker nor ONNX Runtime accepts the model.
    """
    model = read(path)
    admit(model.proto, model.name)
    return model


def read(path: str | os.PathLike[str]) -> Model:
    """Read a model with its external data as `load` does, unchecked. Raises ModelFileError."""
    file = Path(path)
    proto = _read(file)
    if has_references(proto):
        proto = _bound(proto, file)
    return Model(proto, str(file))


def _read(file: Path) -> onnx.ModelProto:
    """The proto in a file, its external data left where it is. Raises ModelFileError."""
    if file.is_dir():
        raise ModelFileError(file, "is a folder; give the .onnx file in it")
    try:
        proto = onnx.load(file, load_external_data=False)
    except FileNotFoundError:
        raise ModelFileError(file, "no such file") from None
    except PermissionError:
        raise ModelFileError(file, "cannot be read (permission denied)") from None
    except (DecodeError, ValueError, UnicodeDecodeError):
        problem = "is not an ONNX model, or it is truncated; export or copy it again"
        raise ModelFileError(file, problem) from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelFileError(file, "is not an ONNX model (it holds no graph); export or copy it again")
    return proto


def normalized(model: Model) -> Model:
    """The model with the standard operators' domain spelled '' everywhere; itself where it is already."""
    if not has_alias(model.proto):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    write_out_alias(proto, model.name)
    return model.with_proto(proto)


def _bound(proto: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model with the values of its external tensors, or references to them."""
    for tensor in every_tensor(proto):
        if is_external(tensor):
            bind(tensor, file)
    kept = KEPT_BYTES if is_large(proto) else LARGE
    for tensor in every_tensor(proto):
        if stored_bytes(tensor) <= kept:
            fill(tensor)
    for tensor in function_tensors(proto):
        fill(tensor)  # nothing reads references there
    return flattened(proto)


def model_files(path: Path) -> list[Path]:
    """The model's file and every file of external data that it refers to. Raises ModelFileError."""
    return [path, *external_files(path, _read(path))]


def size_on_disk(path: Path) -> int:
    """Bytes of a model file and of all its external data. Raises ModelFileError."""
    return sum(file.stat().st_size for file in model_files(path))


def is_large(proto: onnx.ModelProto, more: int = 0) -> bool:
    """Whether the model, with `more` bytes of weights, has to be saved with external data.

    Counted from types and shapes: protobuf's own ByteSize raises for a message of more than 2 GB.
    """
    return more + sum(stored_bytes(tensor) for tensor in every_tensor(proto)) > LARGE


def serialize(model: Model) -> bytes:
    """Deterministic bytes of a model below 2 GB. Raises InvalidModelError above it."""
    proto = model.proto
    if is_large(proto):
        raise _too_large(model)
    if has_references(proto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        for tensor in every_tensor(proto):
            fill(tensor)
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise _too_large(model) from None


def _too_large(model: Model) -> InvalidModelError:
    return InvalidModelError(f"{model.name}: over 2 GB; save it with external data instead")


def save(model: Model, path: str | os.PathLike[str]) -> int:
    """Write the model atomically; over 2 GB its weights go to `PATH.data`. Returns the bytes written.

    Raises OutputError (no rights, disk full); nothing is left behind then.
    """
    target = Path(path)
    data = target.with_name(target.name + ".data")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            part, data_part = folder / target.name, folder / data.name
            size = 0
            if is_large(model.proto):
                content = _write_data(model.proto, data_part)
                size = data_part.stat().st_size
            else:
                content = serialize(model)
            part.write_bytes(content)
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            if data_part.exists():
                target.unlink(missing_ok=True)  # or a kill would leave an old model beside new weights
                data_part.replace(data)
            part.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return size + len(content)


def _write_data(proto: onnx.ModelProto, data: Path) -> bytes:
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


@contextmanager
def on_disk(model: Model) -> Iterator[Path]:
    """The model as a temporary file, for tools that want a path (always so above 2 GB)."""
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        save(model, path)
        yield path


def check(model: Model) -> None:
    """Full onnx.checker check (shape inference included). Raises InvalidModelError with its first line."""
    proto = model.proto
    try:
        if is_large(proto) or has_references(proto):
            light = without_values(proto)
            for tensor in light.weights.values():
                if not is_external(tensor) and stored_bytes(tensor) <= LARGE:
                    onnx.checker.check_tensor(tensor)
            proto = light.proto
        full_check(proto)
    except (Refusal, onnx.checker.ValidationError) as refusal:
        reason = " ".join(str(refusal).split())[:300]
        raise InvalidModelError(f"{model.name}: the ONNX checker refuses it: {reason}") from None
