"""From what a user writes after --data to a Dataset, and the checks that a task makes on its labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.data.arrays import open_npy, open_npz
from onnxq.data.callables import open_callable
from onnxq.data.dataset import Dataset, Source, SourceDataset
from onnxq.data.feeds import open_npz_folder
from onnxq.data.huggingface import open_huggingface
from onnxq.data.images import has_images, open_image_folder, open_image_zip
from onnxq.data.inputs import InputSpec
from onnxq.data.preprocess import Preprocess, resolve
from onnxq.data.protobufs import find_test_sets, open_test_sets
from passes.core.errors import DataError

__all__ = ["check_labels", "open_dataset", "require_labels", "runs_code"]

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_dataset(
    spec: str | Path,
    inputs: Sequence[InputSpec],
    *,
    preprocess: str | Path | Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Images (folder, .zip), .npy, .npz, a folder of .npz or test_data_set_*, module:callable or hf:NAME.

    `limit` takes at most that many samples at random by `seed` (folders are sorted by class); a smaller limit
    with the same seed takes a prefix of a larger one. Without a limit, or when it is not below the number of
    samples, the order is that of the files. The first sample is decoded to find a misfit before a long run.
    Raises DataError.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{spec}: a limit of {limit} samples leaves no data; use 1 or more.")
    opened = _open(str(spec), inputs, resolve(preprocess))
    dataset: Dataset = opened if isinstance(opened, Dataset) else SourceDataset(opened)
    if len(dataset) == 0:
        raise DataError(f"{spec}: it holds no samples; give at least one.")
    if limit is not None and limit < len(dataset):
        chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
        dataset = dataset.subset([int(index) for index in chosen])
    next(dataset.batches(1, 0, 1))
    return dataset


def runs_code(spec: str) -> bool:
    """Whether opening this data imports and calls a module, or downloads."""
    return spec.startswith("hf:") or (not Path(spec).exists() and bool(_CALLABLE.fullmatch(spec)))


def _open(spec: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Source | Dataset:
    path = Path(spec)
    if spec.startswith("hf:"):
        return open_huggingface(spec, inputs, preprocess)
    if path.is_dir():
        return _open_folder(path, inputs, preprocess)
    if path.is_file():
        openers: dict[str, Callable[[Path, Sequence[InputSpec], Preprocess | None], Source]]
        openers = {".npz": open_npz, ".npy": open_npy, ".zip": open_image_zip}
        opener = openers.get(path.suffix.lower())
        if opener is None:
            raise DataError(
                f"{path}: no data format; give a folder, .npz, .npy, .zip, module:callable or hf:NAME."
            )
        return opener(path, inputs, preprocess)
    if _CALLABLE.fullmatch(spec):
        return open_callable(spec, inputs, preprocess)
    raise DataError(
        f"{path}: the data does not exist; give a folder, .npz, .npy, .zip, module:callable or hf:NAME."
    )


def _open_folder(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Source:
    if find_test_sets(path):
        return open_test_sets(path, inputs, preprocess)
    if has_images(path):
        return open_image_folder(path, inputs, preprocess)
    if any(path.glob("*.npz")):
        return open_npz_folder(path, inputs, preprocess)
    raise DataError(f"{path}: the folder has no images, .npz files or test_data_set folders; check the path.")


def require_labels(dataset: Dataset) -> None:
    """Raise DataError when the dataset has no labels."""
    if not dataset.labelled:
        raise DataError(
            f"{dataset.name}: there are no labels; "
            "add labels.txt ('file label'), class folders or an array y."
        )


def check_labels(dataset: Dataset, classes: int) -> None:
    """Raise DataError naming file and value when a label is not in 0..classes-1, or there are none."""
    require_labels(dataset)
    for origin, label in _labels(dataset):
        if not 0 <= label < classes:
            raise DataError(
                f"{origin}: label {label} is outside 0..{classes - 1}, the classes of the model; "
                "number the classes from 0 in the order the model was trained with."
            )


def _labels(dataset: Dataset) -> Iterator[tuple[str, int]]:
    if isinstance(dataset, SourceDataset):
        yield from dataset.label_origins()
        return
    index = 0
    for batch in dataset.batches(1):
        for label in () if batch.labels is None else batch.labels:
            yield f"{dataset.name}[{index}]", int(label)
            index += 1
