"""Statistics on disk under the hash of all that decides them: model, tensors, data and runtime."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxq.calibration.statistics import TensorStatistics
from onnxq.data.dataset import Dataset
from onnxq.files import atomic_write
from passes.core.errors import DataError
from passes.graph.external_data import tensor_digest
from passes.graph.light import bare_copy

__all__ = ["StatisticsCache", "model_digest"]

_SCHEMA = "onnxq-statistics-1"


def model_digest(model: onnx.ModelProto) -> str:
    """sha256 (hex) of the model's content, its weights hashed one by one so that 2 GB is no limit."""
    total = hashlib.sha256()
    bare = bare_copy(model)
    total.update(bare.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        total.update(tensor_digest(tensor))
    return total.hexdigest()


class StatisticsCache:
    """A folder of .npz files; what comes out is bit-identical to what went in."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        """The folder is made when something is stored."""
        self.folder = Path(folder)

    def key(
        self, digest: str, tensors: Sequence[str], dataset: Dataset, *, batch_size: int, budget: int
    ) -> str:
        """The name of one pass: `digest` of the model, tensors in any order, data, and how it was run.

        The batch and the onnxruntime version are part of it because they change the last bits of floats.
        """
        run = f"{_SCHEMA}|{ort.__version__}|{batch_size}|{budget}"
        parts = [run, digest, dataset.fingerprint(), *sorted(set(tensors))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def get(self, key: str, tensors: Sequence[str]) -> dict[str, TensorStatistics] | None:
        """The stored statistics in the order of `tensors`, or None; DataError for a damaged file."""
        path = self._path(key)
        if not path.is_file():
            return None
        names = sorted(set(tensors))
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                spans, numbers = archive["spans"], archive["numbers"]
            rows = zip(names, spans, numbers, strict=True)
            stored = {name: TensorStatistics.from_arrays(name, span, row) for name, span, row in rows}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: the cached statistics cannot be read ({error}); delete the file."
            ) from error
        return {name: stored[name] for name in tensors}

    def put(self, key: str, statistics: Mapping[str, TensorStatistics]) -> None:
        """Store atomically; raises OutputError when the folder cannot be written."""
        arrays = [statistics[name].to_arrays() for name in sorted(statistics)]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, spans=np.stack([a for a, _ in arrays]), numbers=np.stack([b for _, b in arrays])
        )
        atomic_write(self._path(key), buffer.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
