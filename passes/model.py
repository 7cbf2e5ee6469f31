"""Loading, checking and saving: the boundary between files and passes.

A `Model` is an ONNX ModelProto and the name that messages call it. Passes treat it as immutable.
Weights of a model over 2 GB live in one file of external data beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import (
    convert_model_to_external_data,
    load_external_data_for_model,
)

from passes.admission import admit
from passes.checking import Refusal, full_check
from passes.errors import InvalidModelError, ModelFileError, OutputError
from passes.scratch import scratch_folder

__all__ = [
    "Model",
    "Step",
    "check",
    "every_graph",
    "is_large",
    "load",
    "normalized",
    "on_disk",
    "read",
    "save",
    "serialize",
]

_TENSORS = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS)
ALIAS = "ai.onnx"
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
    """Read a model with its external data, and check it (passes/admission.py).

    Warns with a ModelWarning where ONNX Runtime accepts what the ONNX checker refuses.

    Raises:
        ModelFileError: the file is missing, truncated, not ONNX, or lacks its data.
        InvalidModelError: neither the ONNX checker nor ONNX Runtime accepts the model.
    """
    model = read(path)
    admit(model.proto, model.name)
    return model


def read(path: str | os.PathLike[str]) -> Model:
    """Read a model with its external data, unchecked. Raises ModelFileError."""
    file = Path(path)
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
    if not has_external_data(proto):
        return normalized(Model(proto, str(file)))
    try:
        load_external_data_for_model(proto, str(file.parent))
    except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0]
        problem = f"its external data cannot be read ({reason}); copy it beside the model"
        raise ModelFileError(file, problem) from None
    return normalized(Model(proto, str(file)))


def _imports(opsets: Sequence[onnx.OperatorSetIdProto]) -> list[onnx.OperatorSetIdProto]:
    """The imports with the standard operators' domain as '', once: ONNX Runtime obeys the last of several."""
    versions = {"" if held.domain == ALIAS else held.domain: held.version for held in opsets}
    return [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]


def normalized(model: Model) -> Model:
    """The model with the domain of the standard operators spelled '' everywhere; itself where it is already.

    'ai.onnx' is an alias of '' that the checker takes in imports only, and few tools take at all.
    """

    def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
        for graph in every_graph(proto.graph):
            yield from graph.node
        for function in proto.functions:
            for node in function.node:
                yield node
                for attribute in node.attribute:
                    for nested in (attribute.g, *attribute.graphs):
                        for graph in every_graph(nested):
                            yield from graph.node

    holders = (model.proto, *model.proto.functions)
    listed = any(held.domain == ALIAS for holder in holders for held in holder.opset_import)
    if not listed and all(node.domain != ALIAS for node in nodes(model.proto)):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for holder in (proto, *proto.functions):
        imports = _imports(holder.opset_import)
        del holder.opset_import[:]
        holder.opset_import.extend(imports)
    for node in nodes(proto):
        if node.domain == ALIAS:
            node.domain = ""
    return model.with_proto(proto)


def has_external_data(proto: onnx.ModelProto) -> bool:
    """Whether any tensor's values stand outside of the model."""
    external = onnx.TensorProto.EXTERNAL
    for graph in every_graph(proto.graph):
        if any(tensor.data_location == external for tensor in graph.initializer):
            return True
        for node in graph.node:
            for attribute in node.attribute:
                held = (attribute.t, *attribute.tensors) if attribute.type in _TENSORS else ()
                if any(tensor.data_location == external for tensor in held):
                    return True
    return False


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that are nested in its nodes' attributes, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_graph(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for nested in attribute.graphs:
                    yield from every_graph(nested)


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether the model has to be saved with external data."""
    return bool(proto.ByteSize() > LARGE)


def serialize(model: Model) -> bytes:
    """Deterministic bytes of a model below 2 GB. Raises InvalidModelError above it."""
    try:
        return bytes(model.proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise InvalidModelError(f"{model.name}: over 2 GB; save it with external data instead") from None


def save(model: Model, path: str | os.PathLike[str]) -> int:
    """Write the model atomically; over 2 GB its weights go to `PATH.data`. Returns the bytes written.

    Raises OutputError (no rights, disk full); nothing is left behind then.
    """
    target = Path(path)
    data = target.with_name(target.name + ".data")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            part = folder / target.name
            if is_large(model.proto):
                proto = onnx.ModelProto()
                proto.CopyFrom(model.proto)
                convert_model_to_external_data(proto, location=data.name, size_threshold=1024)
                onnx.save(proto, part)
                (folder / data.name).replace(data)
            else:
                part.write_bytes(serialize(model))
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            size = part.stat().st_size
            part.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return size + (data.stat().st_size if is_large(model.proto) else 0)


@contextmanager
def on_disk(model: Model) -> Iterator[Path]:
    """The model as a temporary file, for tools that want a path (always so above 2 GB)."""
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        save(model, path)
        yield path


def check(model: Model) -> None:
    """Full onnx.checker check (shape inference included). Raises InvalidModelError with its first line."""
    try:
        full_check(model.proto)
    except Refusal as refusal:
        raise InvalidModelError(f"{model.name}: the ONNX checker refuses it: {refusal}") from None
