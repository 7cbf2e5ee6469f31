"""`module:callable`: the user's own code gives a Dataset, a sequence or any iterable of items.

An item is a dict by input name, an array, or a pair (x, y); one sample or one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.dataset import Dataset
from onnxq.data.feeds import FeedSource, RawFeed
from onnxq.data.inputs import InputSpec, sole_input
from onnxq.data.preprocess import Preprocess
from onnxq.files import Scratch
from onnxq.plugins import import_object
from passes.errors import DataError

__all__ = ["open_callable"]


def open_callable(
    spec: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> FeedSource | Dataset:
    """Call it without arguments. A sequence stays lazy; an iterator is written to a temporary folder once,
    so that it can be read again, in any order, without being held in memory."""
    made = _call(spec)
    if isinstance(made, Dataset):
        if preprocess is not None:
            raise DataError(f"{spec}: it gives a Dataset, which prepares its own samples; drop --preprocess.")
        return made
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        loaders = [(f"{spec}[{i}]", _loader(made, i, spec, inputs)) for i in range(len(made))]
        return FeedSource(spec, loaders, inputs, preprocess)
    if isinstance(made, Iterable):
        return _spool(spec, made, inputs, preprocess)
    raise DataError(
        f"{spec}: it gives a {type(made).__name__}; return an iterable of arrays, pairs or dicts."
    )


def _call(spec: str) -> Any:
    target = import_object(spec, DataError)
    if not callable(target):
        raise DataError(f"{spec}: it is a {type(target).__name__}, not a callable; use MODULE:CALLABLE.")
    return target()


def _loader(items: Any, index: int, spec: str, inputs: Sequence[InputSpec]) -> Callable[[], RawFeed]:
    return lambda: _feed(items[index], f"{spec}[{index}]", inputs)


def _spool(
    spec: str, items: Iterable[Any], inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> FeedSource:
    folder = Scratch()
    feeds: list[tuple[str, Callable[[], RawFeed]]] = []
    for number, item in enumerate(items):
        path = folder.path / f"{number}.npz"
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **_feed(item, f"{spec}[{number}]", inputs))
        feeds.append((f"{spec}[{number}]", _reader(path)))
    return FeedSource(spec, feeds, inputs, preprocess, keep=folder)


def _reader(path: Path) -> Callable[[], RawFeed]:
    def load() -> RawFeed:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}

    return load


def _feed(item: Any, origin: str, inputs: Sequence[InputSpec]) -> RawFeed:
    if isinstance(item, Mapping):
        return {str(name): np.asarray(array) for name, array in item.items()}
    name = sole_input(inputs, origin).name
    if isinstance(item, tuple | list) and len(item) == 2:
        return {name: np.asarray(item[0]), "labels": np.asarray(item[1])}
    if isinstance(item, tuple | list) and len(item) == 1:
        return {name: np.asarray(item[0])}
    if hasattr(item, "__array__"):
        return {name: np.asarray(item)}
    raise DataError(f"{origin}: an item is a {type(item).__name__}; yield an array, a pair (x, y) or a dict.")
