"""ONNX test data: folders test_data_set_* with input_0.pb, ... in the order of the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnxq.data.feeds import FeedSource, RawFeed
from onnxq.data.inputs import InputSpec
from onnxq.data.kind import folder_kind
from onnxq.data.limits import check_unpacked
from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = ["KIND", "find_test_sets", "open_test_sets"]

_ERRORS = (OSError, DecodeError, ValueError, TypeError, LookupError, OverflowError, MemoryError)


def find_test_sets(folder: Path) -> list[Path]:
    """The test data folders in or at `folder`, in number order; empty when there are none."""
    if (folder / "input_0.pb").is_file():
        return [folder]
    found = [path for path in folder.glob("test_data_set_*") if path.is_dir()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def open_test_sets(folder: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> FeedSource:
    """Output protobufs are ignored: they hold what the model answered, not labels."""
    feeds = [
        (str(path), partial(_load, path, [spec.name for spec in inputs])) for path in find_test_sets(folder)
    ]
    return FeedSource(str(folder), feeds, inputs, preprocess)


def _load(folder: Path, names: Sequence[str]) -> RawFeed:
    feed = {}
    for number, name in enumerate(names):
        path = folder / f"input_{number}.pb"
        try:
            check_unpacked(str(path), path.stat().st_size, path.stat().st_size)
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise DataError(f"{path}: its numbers lie in another file; write them into the TensorProto.")
            feed[name] = numpy_helper.to_array(tensor)
        except _ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{path}: cannot be read as a tensor ({reason}); write a TensorProto there."
            ) from error
    return feed


KIND = folder_kind("test_data_set folders", lambda folder: bool(find_test_sets(folder)), open_test_sets)
