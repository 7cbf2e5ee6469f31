"""Arrays in one .npy or .npz: x (or one array per model input) and optionally y or labels."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.dataset import Labels, digest_arrays
from onnxq.data.inputs import InputSpec, Sample, conform, has_batch_axis, sole_input
from onnxq.data.preprocess import Preprocess
from onnxq.files import Scratch
from passes.errors import DataError

__all__ = ["LABEL_NAMES", "ArraySource", "as_labels", "match_names", "open_npy", "open_npz"]

LABEL_NAMES = ("y", "labels", "label")


class Rows:
    """The rows of a .npy file, each read on its own, so that the file is never in memory as a whole."""

    def __init__(self, path: Path, origin: str) -> None:
        """`origin` is what messages name; raises DataError for a file that is no plain array."""
        self._path = path
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{origin}: cannot be read as an array ({error}); save it with numpy.save."
            ) from error
        if not isinstance(mapped, np.memmap) or mapped.ndim == 0 or mapped.shape[0] == 0:
            raise DataError(f"{origin}: it holds no samples; save an array of shape (samples, ...).")
        self.shape: tuple[int, ...]
        self.shape, self.dtype, self._offset = mapped.shape, mapped.dtype, int(mapped.offset)
        self._row_major = mapped.flags.c_contiguous

    def __len__(self) -> int:
        return self.shape[0]

    def row(self, index: int) -> NDArray[Any]:
        """A copy of row `index`."""
        if not self._row_major:
            return np.array(np.load(self._path, mmap_mode="r")[index])
        shape = self.shape[1:]
        count = int(np.prod(shape, dtype=np.int64))
        offset = self._offset + index * count * self.dtype.itemsize
        return np.fromfile(self._path, self.dtype, count, offset=offset).reshape(shape)

    def all(self) -> NDArray[Any]:
        """The whole array in memory; for labels."""
        return np.load(self._path, allow_pickle=False)  # type: ignore[no-any-return]


class ArraySource:
    """Samples that are rows of one array per model input."""

    whole = False

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, Rows],
        labels: Labels | None,
        inputs: Sequence[InputSpec],
        preprocess: Preprocess | None,
        keep: object = None,
    ) -> None:
        """`keep` is held as long as the source, such as the temporary folder that the arrays lie in."""
        lengths = {key: len(rows) for key, rows in arrays.items()}
        if labels is not None:
            lengths["labels"] = len(labels)
        if len(set(lengths.values())) != 1:
            text = ", ".join(f"{key}: {length}" for key, length in lengths.items())
            raise DataError(f"{name}: arrays of different lengths ({text}); give one row per sample in each.")
        if not has_batch_axis(inputs):
            raise DataError(
                f"{name}: the model's inputs share no batch axis; give a folder of .npz, one per run."
            )
        self.name, self.labels = name, labels
        self._arrays, self._inputs, self._preprocess, self._keep = arrays, inputs, preprocess, keep
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> Sample:
        return conform(dict(self._raw(index)), self._inputs, self._preprocess, self.origin(index))

    def origin(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def digest(self, index: int) -> bytes:
        return digest_arrays(self._raw(index))

    def settings(self) -> str:
        return f"arrays|{self._preprocess.to_json() if self._preprocess else None}"

    def _raw(self, index: int) -> list[tuple[str, NDArray[Any]]]:
        return [(name, rows.row(index)) for name, rows in self._arrays.items()]


def open_npy(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ArraySource:
    """An unlabelled array of shape (samples, ...) for a model with one input."""
    spec = sole_input(inputs, str(path))
    return ArraySource(str(path), {spec.name: Rows(path, str(path))}, None, inputs, preprocess)


def open_npz(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ArraySource:
    """Unpacked to a temporary folder: the rows of an array inside a zip cannot be reached one by one."""
    folder = Scratch()
    rows: dict[str, Rows] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for number, member in enumerate(archive.namelist()):
                target = folder.path / f"{number}.npy"
                with archive.open(member) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
                key = member.removesuffix(".npy")
                rows[key] = Rows(target, f"{path}:{key}")
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz ({error}); save it with numpy.savez.") from error
    names, label = match_names(list(rows), inputs, str(path))
    labels = as_labels(rows[label].all(), f"{path}:{label}") if label else None
    arrays = {spec: rows[key] for spec, key in names.items()}
    return ArraySource(str(path), arrays, labels, inputs, preprocess, keep=folder)


def match_names(
    keys: Sequence[str], inputs: Sequence[InputSpec], origin: str
) -> tuple[dict[str, str], str | None]:
    """Which array feeds each input, and which one holds labels; raises DataError when an input has none."""
    wanted = [spec.name for spec in inputs]
    label = next((key for key in LABEL_NAMES if key in keys and key not in wanted), None)
    if all(name in keys for name in wanted):
        return {name: name for name in wanted}, label
    data = [key for key in keys if key != label]
    if len(wanted) == 1 and ("x" in data or len(data) == 1):
        return {wanted[0]: "x" if "x" in data else data[0]}, label
    raise DataError(
        f"{origin}: it holds {', '.join(keys) or 'nothing'} but the model takes {', '.join(wanted)}; "
        "name one array per model input (and y for labels)."
    )


def as_labels(array: NDArray[Any], origin: str) -> Labels:
    """int64 class numbers of shape (samples,); raises DataError for anything else."""
    flat = array.reshape(len(array)) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise DataError(
            f"{origin}: labels are {array.dtype} of shape {array.shape}; save one class number per sample."
        )
    return flat.astype(np.int64)
