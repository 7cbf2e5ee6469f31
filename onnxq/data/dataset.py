"""Datasets: anything that yields batches, decoded lazily, so that memory does not depend on their length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxq.data.inputs import Sample
from passes.core.errors import DataError

__all__ = ["Batch", "Dataset", "Labels", "Source", "SourceDataset", "digest_arrays", "group"]

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Model inputs by name, each with the batch axis first, and int64 labels of shape (batch,) or None."""

    inputs: Sample
    labels: Labels | None

    @property
    def size(self) -> int:
        """Length of the batch axis (1 for a feed without one)."""
        first = next(iter(self.inputs.values()))
        return int(first.shape[0]) if first.ndim else 1


@runtime_checkable
class Dataset(Protocol):
    """Samples in a fixed order, each the same every time it is read."""

    @property
    def name(self) -> str:
        """For reports and messages."""

    @property
    def labelled(self) -> bool:
        """Whether every batch has labels."""

    def __len__(self) -> int:
        """Number of samples."""

    def fingerprint(self) -> str:
        """sha256 (hex) over the content, the labels, the order and the preprocessing of the samples."""

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Samples start..stop in order, at most `size` per batch (fewer where the sample shape changes)."""

    def subset(self, indices: Sequence[int]) -> Dataset:
        """These samples of this dataset, in this order."""


class Source(Protocol):
    """Random access to conformed samples; what one kind of data must provide to become a dataset."""

    name: str
    labels: Labels | None
    whole: bool
    """True when a sample is a complete feed, whose arrays cannot be stacked with another's."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Decode one sample; without a batch axis unless `whole`."""

    def origin(self, index: int) -> str:
        """The file, or the file and row, that a message about this sample names."""

    def digest(self, index: int) -> bytes:
        """A hash of the raw content of this sample, before preprocessing."""

    def settings(self) -> str:
        """What else decides a sample's values: the preprocessing."""


class SourceDataset:
    """A view of a source: all of it in file order, or the samples at `order`."""

    def __init__(self, source: Source, order: Sequence[int] | NDArray[np.intp] | None = None) -> None:
        self.source = source
        self.order = np.arange(len(source)) if order is None else np.asarray(order, np.intp)
        self._fingerprint: str | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def labelled(self) -> bool:
        return self.source.labels is not None

    def __len__(self) -> int:
        return len(self.order)

    def label_origins(self) -> Iterator[tuple[str, int]]:
        """Each sample's origin and label, without decoding; empty when unlabelled."""
        if self.source.labels is not None:
            for index in self.order:
                yield self.source.origin(int(index)), int(self.source.labels[index])

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            total = hashlib.sha256(self.source.settings().encode())
            for index in self.order:
                total.update(self.source.digest(int(index)))
                label = None if self.source.labels is None else int(self.source.labels[index])
                total.update(f"|{label}|".encode())
            self._fingerprint = total.hexdigest()
        return self._fingerprint

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        labels = self.source.labels
        samples = (
            (self.source.sample(int(index)), None if labels is None else int(labels[index]))
            for index in self.order[slice(start, stop)]
        )
        return group(samples, size, whole=self.source.whole)

    def subset(self, indices: Sequence[int]) -> SourceDataset:
        return SourceDataset(self.source, self.order[np.asarray(indices, np.intp)])


def group(samples: Iterable[tuple[Sample, int | None]], size: int, *, whole: bool = False) -> Iterator[Batch]:
    """Stack consecutive samples of equal shape into batches of at most `size`; a whole feed is a batch."""
    if size < 1:
        raise DataError(f"batch size {size} is not positive; use 1 or more.")
    held: list[tuple[Sample, int | None]] = []
    for sample, label in samples:
        if whole:
            yield Batch(sample, None)
            continue
        if held and _shapes(held[0][0]) != _shapes(sample):
            yield _stack(held)
            held = []
        held.append((sample, label))
        if len(held) == size:
            yield _stack(held)
            held = []
    if held:
        yield _stack(held)


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.values()]


def _stack(held: Sequence[tuple[Sample, int | None]]) -> Batch:
    inputs = {name: np.stack([sample[name] for sample, _ in held]) for name in held[0][0]}
    labels = [label for _, label in held if label is not None]
    return Batch(inputs, np.asarray(labels, np.int64) if labels else None)


def digest_arrays(arrays: Iterable[tuple[str, NDArray[Any]]]) -> bytes:
    """sha256 over names, dtypes, shapes and values."""
    total = hashlib.sha256()
    for name, array in arrays:
        total.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.digest()
