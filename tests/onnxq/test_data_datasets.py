"""What every dataset promises: order, batches, subsets, fingerprints, limits and held memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxq.data import (
    Dataset,
    InputSpec,
    MemoryDataset,
    check_labels,
    materialise,
    open_dataset,
    random_dataset,
)
from passes.core.errors import DataError

VECTOR = [InputSpec("x", np.dtype(np.float32), ("N", 3))]


def _open(
    folder: Path, *, limit: int | None = None, seed: int = 0, count: int = 20, shift: int = 0
) -> Dataset:
    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3) + shift
    np.savez(folder / "d.npz", x=rows, y=np.arange(count))
    return open_dataset(folder / "d.npz", VECTOR, limit=limit, seed=seed)


def _values(dataset: Dataset, size: int = 7, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    parts = [batch.inputs["x"] for batch in dataset.batches(size, start, stop)]
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)


@given(size=st.integers(1, 30), start=st.integers(0, 25), stop=st.none() | st.integers(0, 25))
def test_batches_are_slices_whatever_their_size(size: int, start: int, stop: int | None) -> None:
    data = random_dataset(VECTOR, 20, 0)
    np.testing.assert_array_equal(_values(data, size, start, stop), _values(data, 1)[start:stop])
    assert all(batch.size <= size for batch in data.batches(size, start, stop))


@given(st.lists(st.integers(0, 19), max_size=12), st.data())
def test_subsets_of_subsets_index_the_subset(indices: list[int], draw: st.DataObject) -> None:
    data = random_dataset(VECTOR, 20, 0)
    part = data.subset(indices)
    np.testing.assert_array_equal(_values(part), _values(data)[indices])
    again = draw.draw(st.lists(st.integers(0, len(indices) - 1))) if indices else []
    np.testing.assert_array_equal(_values(part.subset(again)), _values(part)[again])


def test_fingerprint_is_of_content_labels_and_order(tmp_path: Path) -> None:
    data = _open(tmp_path)
    first = data.fingerprint()
    assert _open(tmp_path).fingerprint() == first
    assert data.subset(range(20)).fingerprint() == first
    assert data.subset(range(19, -1, -1)).fingerprint() != first
    assert data.subset(range(19)).fingerprint() != first
    assert _open(tmp_path, shift=1).fingerprint() != first


def test_fingerprint_is_of_the_preprocessing(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    inputs = [InputSpec("x", np.dtype(np.float32), ("N", 3, 4, 6))]
    prints = {open_dataset(tmp_path, inputs, preprocess=name).fingerprint() for name in ("none", "cifar")}
    assert len(prints) == 2


def test_limit_is_a_seeded_random_subset_and_nests(tmp_path: Path) -> None:
    five, ten = _open(tmp_path, limit=5), _open(tmp_path, limit=10)
    assert len(five) == 5
    np.testing.assert_array_equal(_values(five), _values(ten)[:5])
    assert not np.array_equal(_values(five), _values(_open(tmp_path))[:5])
    assert not np.array_equal(_values(five), _values(_open(tmp_path, limit=5, seed=1)))
    np.testing.assert_array_equal(_values(_open(tmp_path, limit=99)), _values(_open(tmp_path)))
    with pytest.raises(DataError, match="limit of 0"):
        _open(tmp_path, limit=0)


def test_materialise_changes_nothing_but_where_the_samples_are(tmp_path: Path) -> None:
    data = _open(tmp_path)
    held = materialise(data, 20 * 3 * 4)
    assert isinstance(held, MemoryDataset)
    assert (len(held), held.name, held.labelled, held.fingerprint()) == (
        len(data),
        data.name,
        data.labelled,
        data.fingerprint(),
    )
    np.testing.assert_array_equal(_values(held, 3, 2, 11), _values(data, 5, 2, 11))
    part, same = held.subset([4, 2]), data.subset([4, 2])
    assert part.fingerprint() == same.fingerprint()
    np.testing.assert_array_equal(_values(part), _values(same))
    assert materialise(data, 20 * 3 * 4 - 1) is data
    assert materialise(held, 1) is held
    with pytest.raises(DataError, match="label 19"):
        check_labels(held, 19)


def test_data_set_protocol_holds(tmp_path: Path) -> None:
    data = _open(tmp_path)
    assert isinstance(data, Dataset)
    assert isinstance(materialise(data, 10**6), Dataset)


def _peak(count: int, folder: Path) -> int:
    np.save(folder / f"{count}.npy", np.zeros((count, 64 * 1024), np.float32))
    data = open_dataset(folder / f"{count}.npy", [InputSpec("x", np.dtype(np.float32), ("N", 64 * 1024))])
    tracemalloc.start()
    for _ in data.batches(4):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_streaming_holds_a_batch_however_many_samples(tmp_path: Path) -> None:
    small, large = _peak(8, tmp_path), _peak(64, tmp_path)
    assert large < small * 1.1
    assert large < 16 * 64 * 1024 * 4
