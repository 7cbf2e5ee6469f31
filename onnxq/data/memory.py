"""Datasets that live in memory: decoded samples kept for repeated passes, and random data on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxq.data.dataset import Batch, Dataset, Labels, SourceDataset, digest_arrays, group
from onnxq.data.inputs import InputSpec, Sample, has_batch_axis, sample_size
from passes.core.errors import DataError

__all__ = ["MemoryDataset", "materialise", "random_dataset"]


# Numbers in one random sample; more is a slip in the declaration.
_MOST = 2**28


class MemoryDataset:
    """Decoded samples of `base`, with its name and fingerprint."""

    def __init__(self, base: Dataset, samples: Sequence[tuple[Sample, int | None]]) -> None:
        """`samples` are the inputs without a batch axis and the label, one per sample of `base`."""
        self._base, self._samples = base, samples

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def labelled(self) -> bool:
        return self._base.labelled

    def __len__(self) -> int:
        return len(self._samples)

    def fingerprint(self) -> str:
        return self._base.fingerprint()

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return group(self._samples[start:stop], size)

    def subset(self, indices: Sequence[int]) -> MemoryDataset:
        return MemoryDataset(self._base.subset(indices), [self._samples[index] for index in indices])


def materialise(dataset: Dataset, max_bytes: int) -> Dataset:
    """The dataset with its decoded samples in memory when they take at most `max_bytes`, else itself.

    Whole feeds (a model without a batch axis) are never held.
    """
    if isinstance(dataset, MemoryDataset) or (isinstance(dataset, SourceDataset) and dataset.source.whole):
        return dataset
    samples: list[tuple[Sample, int | None]] = []
    held = 0
    for batch in dataset.batches(1):
        held += sum(array.nbytes for array in batch.inputs.values())
        # The mean so far tells early that it will not fit, without decoding half of the data for nothing.
        if held > max_bytes or held / (len(samples) + 1) * len(dataset) > max_bytes:
            return dataset
        label = None if batch.labels is None else int(batch.labels[0])
        samples.append(({name: array[0] for name, array in batch.inputs.items()}, label))
    return MemoryDataset(dataset, samples)


class _RandomSource:
    labels: Labels | None = None

    def __init__(self, inputs: Sequence[InputSpec], samples: int, seed: int) -> None:
        self.whole = not has_batch_axis(inputs)
        self.name = f"random(seed={seed})"
        self._inputs, self._samples, self._seed = inputs, samples, seed

    def __len__(self) -> int:
        return self._samples

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng([self._seed, index])
        out: Sample = {}
        for spec in self._inputs:
            first = [dim if isinstance(dim, int) else 1 for dim in spec.shape[:1]] if self.whole else []
            shape = [*first, *(dim for dim in spec.shape[1:] if isinstance(dim, int))]
            kind = spec.dtype.kind
            values = rng.integers(0, 2, shape) if kind in "biu" else rng.standard_normal(shape)
            out[spec.name] = np.asarray(values).astype(spec.dtype)
        return out

    def origin(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def digest(self, index: int) -> bytes:
        return digest_arrays(self.sample(index).items())

    def settings(self) -> str:
        return "random"


def random_dataset(inputs: Sequence[InputSpec], samples: int, seed: int) -> SourceDataset:
    """Standard normal floats and 0/1 integers; only for --random-calibration, whose report must say so."""
    for spec in inputs:
        if any(not isinstance(dim, int) for dim in spec.shape[1:]):
            raise DataError(
                f"random data: model input '{spec.name}' has a free shape; fix its dims or give data."
            )
    if sample_size(inputs) > _MOST:
        raise DataError(f"random data: a sample has {sample_size(inputs):,} numbers, which is too large.")
    if samples < 1:
        raise DataError(f"random data: {samples} samples asked for; use 1 or more.")
    return SourceDataset(_RandomSource(inputs, samples, seed))
