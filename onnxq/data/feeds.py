"""Samples in pieces, each one sample or one batch: a folder of .npz, protobufs, or a user's items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.arrays import as_labels, match_names
from onnxq.data.dataset import Labels, digest_arrays
from onnxq.data.inputs import InputSpec, Sample, conform, has_batch_axis
from onnxq.data.kind import folder_kind
from onnxq.data.npy import read_npz
from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = ["KIND", "FeedSource", "RawFeed", "open_npz_folder"]

RawFeed = Mapping[str, NDArray[Any]]
"""Arrays by name, with or without the batch axis, labels under y, labels or label."""


class FeedSource:
    """A list of feeds cut into samples; where the model has no common batch axis a feed is one sample.

    Every feed is read once when the source is made, to learn its length and labels; one is held at a time.
    """

    def __init__(
        self,
        name: str,
        feeds: Sequence[tuple[str, Callable[[], RawFeed]]],
        inputs: Sequence[InputSpec],
        preprocess: Preprocess | None,
        keep: object = None,
    ) -> None:
        """`feeds` are (origin, loader); `keep` is held as long as the source."""
        self.name, self.whole = name, not has_batch_axis(inputs)
        self._feeds, self._inputs, self._preprocess, self._keep = feeds, inputs, preprocess, keep
        self._held: tuple[int, Sample, Labels | None] | None = None
        self._index: list[tuple[int, int]] = []
        labels: list[Labels | None] = []
        for number in range(len(feeds)):
            arrays, marks = self._feed(number)
            rows = 1 if self.whole else len(next(iter(arrays.values())))
            self._index += [(number, row) for row in range(rows)]
            labels.append(marks)
        known = [marks for marks in labels if marks is not None]
        if known and len(known) != len(feeds):
            missing = feeds[next(i for i, marks in enumerate(labels) if marks is None)][0]
            raise DataError(
                f"{missing}: no labels, though others of {name} have them; add y to each or to none."
            )
        if not self._index:
            raise DataError(f"{name}: it holds no samples; give at least one.")
        self.labels: Labels | None = np.concatenate(known) if known and not self.whole else None

    def __getstate__(self) -> dict[str, object]:
        # Another process reads the files where they lie, and does not remove them.
        return {**self.__dict__, "_keep": None, "_held": None}

    def __len__(self) -> int:
        return len(self._index)

    def sample(self, index: int) -> Sample:
        return conform(self._raw(index), self._inputs, self._preprocess, self.origin(index), whole=self.whole)

    def origin(self, index: int) -> str:
        number, row = self._index[index]
        return self._feeds[number][0] if self.whole else f"{self._feeds[number][0]}[{row}]"

    def digest(self, index: int) -> bytes:
        return digest_arrays(self._raw(index).items())

    def settings(self) -> str:
        return f"feeds|{self._preprocess.to_json() if self._preprocess else None}"

    def _raw(self, index: int) -> Sample:
        number, row = self._index[index]
        arrays, _ = self._feed(number)
        return arrays if self.whole else {name: array[row] for name, array in arrays.items()}

    def _feed(self, number: int) -> tuple[Sample, Labels | None]:
        if self._held is None or self._held[0] != number:
            self._held = None
            origin, load = self._feeds[number]
            self._held = (number, *self._batched(load(), origin))
        return self._held[1], self._held[2]

    def _batched(self, raw: RawFeed, origin: str) -> tuple[Sample, Labels | None]:
        names, label = match_names(list(raw), self._inputs, origin)
        arrays = {spec.name: np.asarray(raw[names[spec.name]]) for spec in self._inputs}
        if self.whole:
            return arrays, None
        for spec in self._inputs:
            if arrays[spec.name].ndim == len(spec.shape) - 1:
                arrays[spec.name] = arrays[spec.name][np.newaxis]
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        marks = (
            None if label is None else as_labels(np.atleast_1d(np.asarray(raw[label])), f"{origin}:{label}")
        )
        if marks is not None:
            lengths["labels"] = len(marks)
        if len(set(lengths.values())) != 1:
            text = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(
                f"{origin}: arrays of different batch lengths ({text}); give one row per sample in each."
            )
        return arrays, marks


def open_npz_folder(folder: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> FeedSource:
    """Every .npz of the folder by sorted name, one sample or one batch each."""
    paths = sorted(folder.glob("*.npz"))
    return FeedSource(
        str(folder), [(str(path), partial(read_npz, path)) for path in paths], inputs, preprocess
    )


KIND = folder_kind(".npz files", lambda folder: any(folder.glob("*.npz")), open_npz_folder)
