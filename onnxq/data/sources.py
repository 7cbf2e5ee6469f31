"""From what a user writes after --data to a Dataset, and the checks that a task makes on its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.data import arrays, callables, feeds, huggingface, images, protobufs
from onnxq.data.dataset import Dataset, Source, SourceDataset
from onnxq.data.inputs import InputSpec
from onnxq.data.kind import Kind
from onnxq.data.objects import open_object
from onnxq.data.preprocess import Preprocess, resolve
from onnxq.plugins import import_object, registered
from passes.core.errors import DataError

__all__ = ["KINDS", "check_labels", "forms", "open_dataset", "require_labels", "runs_code"]

KINDS: tuple[Kind, ...] = (
    huggingface.KIND,
    protobufs.KIND,
    images.FOLDER,
    feeds.KIND,
    arrays.NPZ,
    arrays.NPY,
    images.ZIP,
    callables.KIND,
)
"""The kinds of data that come with onnxq, in the order in which they are tried. A new one is a place here."""

GROUP = "onnxq.sources"
"""Entry points: NAME -> a Kind, for data that are written as NAME:whatever."""


def open_dataset(
    spec: object,
    inputs: Sequence[InputSpec],
    *,
    preprocess: str | Path | Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The samples that a text or path names, of one of the kinds in the table or of an installed package, or
    those that an object holds (onnxq/data/objects.py).

    `limit` takes at most that many samples at random by `seed` (folders are sorted by class); a smaller limit
    with the same seed takes a prefix of a larger one. Without a limit, or when it is not below the number of
    samples, the order is that of the files. The first sample is decoded to find a misfit before a long run.
    Raises DataError.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{_named(spec)}: a limit of {limit} samples leaves no data; use 1 or more.")
    prepared = resolve(preprocess)
    if isinstance(spec, str | Path):
        opened = _open(str(spec), inputs, prepared)
    else:
        opened = open_object(spec, inputs, prepared)
    dataset: Dataset = opened if isinstance(opened, Dataset) else SourceDataset(opened)
    if len(dataset) == 0:
        raise DataError(f"{_named(spec)}: it holds no samples; give at least one.")
    if limit is not None and limit < len(dataset):
        chosen = np.random.default_rng(seed).permutation(len(dataset))[:limit]
        dataset = dataset.subset([int(index) for index in chosen])
    next(dataset.batches(1, 0, 1))
    return dataset


def _named(spec: object) -> str:
    return str(spec) if isinstance(spec, str | Path) else f"the given {type(spec).__name__}"


def runs_code(spec: str) -> bool:
    """Whether opening this data imports and calls a module, or downloads."""
    kind = _kind(spec)
    return kind is not None and kind.runs_code


def forms() -> list[str]:
    """How data are written, kind by kind; those of installed packages last."""
    own = ["a folder", *(kind.form for kind in KINDS if not kind.inside)]
    return [*own, *(f"{name}:..." for name in sorted(registered(GROUP)))]


def _kind(spec: str) -> Kind | None:
    """The kind that a text means, those of installed packages first; None where there is none."""
    name, colon, _ = spec.partition(":")
    entry = registered(GROUP).get(name) if colon and not Path(spec).exists() else None
    if entry is None:
        return next((kind for kind in KINDS if kind.takes(spec)), None)
    kind = import_object(entry.value, DataError)
    if not isinstance(kind, Kind):
        raise DataError(f"{spec}: the package that registers {name} gives no onnxq.data.Kind.")
    return kind


def _open(spec: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Source | Dataset:
    kind = _kind(spec)
    if kind is not None:
        return kind.open(spec, inputs, preprocess)
    if Path(spec).is_dir():
        held = [kind.form for kind in KINDS if kind.inside]
        there = f"{', '.join(held[:-1])} or {held[-1]}"
        raise DataError(f"{spec}: the folder has no {there}; check the path.")
    known = forms()
    give = f"give {', '.join(known[:-1])} or {known[-1]}."
    if Path(spec).is_file():
        raise DataError(f"{spec}: no data format; {give}")
    raise DataError(f"{spec}: the data does not exist; {give}")


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
