"""Arrays in one .npy or .npz: x (or one array per model input) and optionally y or labels."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.archive import ARCHIVE_ERRORS, checked_members, copy_member
from onnxq.data.dataset import Labels, digest_arrays
from onnxq.data.inputs import InputSpec, Sample, conform, has_batch_axis, sole_input
from onnxq.data.kind import file_kind
from onnxq.data.npy import read_header, read_npy
from onnxq.data.preprocess import Preprocess
from onnxq.files import Scratch
from passes.core.errors import DataError

__all__ = ["LABEL_NAMES", "NPY", "NPZ", "ArraySource", "as_labels", "match_names", "open_npy", "open_npz"]

LABEL_NAMES = ("y", "labels", "label")


class Rows:
    """The rows of a .npy file, each read on its own, so that the file is never in memory as a whole."""

    def __init__(self, path: Path, origin: str) -> None:
        """`origin` is what messages name; raises DataError for a file that is not a plain array."""
        self._path, self._origin = path, origin
        try:
            with path.open("rb") as file:
                self._header = read_header(file, path.stat().st_size, origin)
        except OSError as error:
            raise DataError(
                f"{origin}: cannot be read ({error.strerror or error}); check the file."
            ) from error
        if not self._header.shape or not self._header.count:
            raise DataError(f"{origin}: it holds no samples; save an array of shape (samples, ...).")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._header.shape

    def __len__(self) -> int:
        return self.shape[0]

    def row(self, index: int) -> NDArray[Any]:
        """A copy of row `index`."""
        header = self._header
        try:
            if header.column_major:
                mapped = np.memmap(self._path, header.dtype, "r", header.offset, header.shape, "F")
                return np.array(mapped[index])
            count = header.count // len(self)
            offset = header.offset + index * count * header.dtype.itemsize
            return np.fromfile(self._path, header.dtype, count, offset=offset).reshape(header.shape[1:])
        except (OSError, ValueError) as error:
            raise DataError(f"{self._origin}: has changed or gone since it was opened ({error}).") from error

    def all(self) -> NDArray[Any]:
        """The whole array in memory; for labels."""
        return read_npy(self._path, self._origin)


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

    def __getstate__(self) -> dict[str, object]:
        # Another process reads the rows where they lie, and does not remove them.
        return {**self.__dict__, "_keep": None}

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
            members = checked_members(archive, str(path))
            _check_room(folder.path, str(path), sum(member.file_size for member in members))
            for number, member in enumerate(members):
                target = folder.path / f"{number}.npy"
                with target.open("wb") as plain:
                    copy_member(archive, member, plain)
                key = member.filename.removesuffix(".npy")
                rows[key] = Rows(target, f"{path}:{key}")
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as .npz ({error}); save it with numpy.savez.") from error
    names, label = match_names(list(rows), inputs, str(path))
    labels = as_labels(rows[label].all(), f"{path}:{label}") if label else None
    arrays = {spec: rows[key] for spec, key in names.items()}
    return ArraySource(str(path), arrays, labels, inputs, preprocess, keep=folder)


def _check_room(folder: Path, origin: str, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{origin}: unpacked it takes {size / 1e9:.1f} GB, but {folder.parent} has {free / 1e9:.1f} GB "
            "left; set TMPDIR to a larger disk, or save its arrays as .npy."
        )


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


NPY, NPZ = file_kind(".npy", open_npy), file_kind(".npz", open_npz)
