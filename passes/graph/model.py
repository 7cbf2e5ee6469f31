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

import onnx
from google.protobuf.message import DecodeError, EncodeError

from passes.core.errors import InvalidModelError, ModelFileError, OutputError
from passes.graph.admission import admit
from passes.graph.alias import has_alias, write_out_alias
from passes.graph.checking import Refusal, full_check
from passes.graph.external_data import KEPT_BYTES, bind, external_files, fill, has_references, is_external
from passes.graph.light import flattened, without_values
from passes.graph.scratch import scratch_folder
from passes.graph.tensors import every_graph, every_tensor, function_tensors, stored_bytes
from passes.graph.writing import data_file, put_in_place, write_data

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
        """This model, remembered as what the rewrite `name` made of `before`.

        `before` is kept where it is small, and always where a proof needs it: the first model of all, and the
        last one that should still compute what the first does.
        """
        needed = not before.history or (before.history[-1].exact and not exact)
        kept = needed or (not is_large(before.proto) and before.proto.ByteSize() <= _KEPT_BYTES)
        return replace(self, history=(*before.history, Step(name, exact, before if kept else None)))

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


def load(path: str | os.PathLike[str], *, weights: bool = True) -> Model:
    """Read a model and check it (passes/graph/admission.py). Large tensors beyond 2 GB stay in their files.

    weights: False leaves all large tensors in their files of external data, for who only looks at the graph.
    Warns with a ModelWarning where ONNX Runtime accepts what the ONNX checker refuses.

    Raises:
        ModelFileError: the file is missing, truncated, not ONNX, or lacks its data.
        InvalidModelError: neither the ONNX checker nor ONNX Runtime accepts the model.
    """
    model = read(path, weights=weights)
    admit(model.proto, model.name)
    return model


def read(path: str | os.PathLike[str], *, weights: bool = True) -> Model:
    """Read a model with its external data as `load` does, unchecked. Raises ModelFileError."""
    file = Path(path)
    proto = _read(file)
    if has_references(proto):
        proto = _bound(proto, file, weights)
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


def _bound(proto: onnx.ModelProto, file: Path, weights: bool) -> onnx.ModelProto:
    """The model with the values of its external tensors, or references to them."""
    for tensor in every_tensor(proto):
        if is_external(tensor):
            bind(tensor, file)
    kept = LARGE if weights and not is_large(proto) else KEPT_BYTES
    for tensor in every_tensor(proto):
        if stored_bytes(tensor) <= kept:
            fill(tensor)
    for tensor in function_tensors(proto):
        fill(tensor)  # nothing reads references there
    return flattened(proto) if weights else proto


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            part = folder / target.name
            size = 0
            if is_large(model.proto):
                data_part = data_file(part)
                content = write_data(model.proto, data_part)
                size = data_part.stat().st_size
            else:
                content = serialize(model)
            part.write_bytes(content)
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            put_in_place(part, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return size + len(content)


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
