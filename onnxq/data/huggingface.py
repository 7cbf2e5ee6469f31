"""`hf:NAME` or `hf:NAME:SPLIT`: a Hugging Face dataset with an image column or columns named as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.data.arrays import match_names
from onnxq.data.dataset import Labels, digest_arrays
from onnxq.data.inputs import InputSpec, Sample, conform
from onnxq.data.kind import prefix_kind
from onnxq.data.pixels import to_rgb
from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = ["KIND", "HuggingFaceSource", "open_huggingface"]

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class HuggingFaceSource:
    """Rows of a `datasets.Dataset`, decoded one at a time."""

    whole = False

    def __init__(
        self, name: str, table: Any, inputs: Sequence[InputSpec], preprocess: Preprocess | None
    ) -> None:
        """`table` has column_names and gives a row as a dict by index."""
        columns: list[str] = list(table.column_names)
        wanted = [spec.name for spec in inputs]
        image = next((column for column in IMAGE_COLUMNS if column in columns and column not in wanted), None)
        self._columns = (
            {wanted[0]: image} if image and len(wanted) == 1 else match_names(columns, inputs, name)[0]
        )
        label = next((column for column in LABEL_COLUMNS if column in columns and column not in wanted), None)
        self.labels: Labels | None = np.asarray(table[label], np.int64) if label else None
        self.name, self._table, self._inputs, self._preprocess = name, table, inputs, preprocess

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int) -> Sample:
        return conform(self._raw(index), self._inputs, self._preprocess, self.origin(index))

    def origin(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def digest(self, index: int) -> bytes:
        return digest_arrays(self._raw(index).items())

    def settings(self) -> str:
        return f"hf|{self._preprocess.to_json() if self._preprocess else None}"

    def _raw(self, index: int) -> Sample:
        row = self._table[index]
        cells = {name: row[column] for name, column in self._columns.items()}
        return {
            name: np.asarray(to_rgb(c, self.origin(index)) if hasattr(c, "convert") else c)
            for name, c in cells.items()
        }


def open_huggingface(
    spec: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> HuggingFaceSource:
    """Needs the `datasets` package; the split may be left out when there is only one."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{spec}: needs the package 'datasets'; run pip install datasets.") from error
    name, _, split = spec.removeprefix("hf:").partition(":")
    try:
        splits = datasets.get_dataset_split_names(name)
    except (OSError, ValueError) as error:
        raise DataError(f"{spec}: the dataset cannot be found ({error}); check its name.") from error
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise DataError(f"{spec}: choose a split as hf:{name}:SPLIT; there are {', '.join(splits)}.")
    return HuggingFaceSource(spec, datasets.load_dataset(name, split=split), inputs, preprocess)


KIND = prefix_kind("hf:", "hf:NAME", open_huggingface, runs_code=True)
