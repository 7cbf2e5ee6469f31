"""`module:callable`: the user's own code gives a Dataset, a sequence or any iterable of items.

An item is a dict by input name, an array, or a pair (x, y); one sample or one batch. What the code raises is
told with the callable's name. A dataset of this kind can be sent to a worker, which calls the code again; the
items of an iterator lie in files by then, and the worker reads those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.dataset import Batch, Dataset, digest_arrays
from onnxq.data.feeds import FeedSource, RawFeed
from onnxq.data.inputs import InputSpec, sole_input
from onnxq.data.kind import Kind
from onnxq.data.npy import read_npz, write_npz
from onnxq.data.preprocess import Preprocess
from onnxq.files import Scratch
from onnxq.plugins import guarded, import_object
from passes.core.errors import DataError

__all__ = ["KIND", "feed_of", "open_callable", "spool"]


def open_callable(
    spec: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> FeedSource | Dataset:
    """Call it without arguments. A sequence stays lazy; an iterator is written to a temporary folder once,
    so that it can be read again, in any order, without being held in memory."""
    made = _call(spec)
    if isinstance(made, Dataset):
        if preprocess is not None:
            raise DataError(f"{spec}: it gives a Dataset, which prepares its own samples; drop `preprocess`.")
        return _Called(spec, made)
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        items = _Items(spec, made, inputs)
        loaders = [(f"{spec}[{i}]", partial(items.feed, i)) for i in range(len(made))]
        return FeedSource(spec, loaders, inputs, preprocess)
    if isinstance(made, Iterable):
        return spool(spec, made, inputs, preprocess)
    raise DataError(
        f"{spec}: it gives a {type(made).__name__}; return an iterable of arrays, pairs or dicts."
    )


def _call(spec: str) -> Any:
    target = import_object(spec, DataError)
    if not callable(target):
        raise DataError(f"{spec}: it is a {type(target).__name__}, not a callable; use MODULE:CALLABLE.")
    return _guarded(spec, target)


def _guarded(origin: str, action: Callable[[], Any]) -> Any:
    """What the user's code gives; what it raises as a DataError that names it."""
    return guarded(origin, action, DataError)


class _Items:
    """A sequence that the user's code made; another process makes it anew when it reads an item."""

    def __init__(self, spec: str, made: Any, inputs: Sequence[InputSpec]) -> None:
        self._spec, self._made, self._inputs = spec, made, inputs
        self._length = len(made)
        self._first: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._first is None and self._length:
            self._first = digest_arrays(self.feed(0).items())
        return {**self.__dict__, "_made": None}

    def feed(self, index: int) -> RawFeed:
        """The arrays of one item."""
        origin = f"{self._spec}[{index}]"
        if self._made is None:
            self._make_again()
        return feed_of(_guarded(origin, lambda: self._made[index]), origin, self._inputs)

    def _make_again(self) -> None:
        self._made = _call(self._spec)
        if len(self._made) != self._length or digest_arrays(self.feed(0).items()) != self._first:
            raise DataError(
                f"{self._spec}: gives other items when it is called again, in a worker; fix its seed, or "
                "leave `workers` out."
            )


class _Called:
    """A Dataset that the user's code made, or a part of it; another process calls the code again."""

    def __init__(self, spec: str, made: Dataset, order: Sequence[int] | None = None) -> None:
        self._spec, self._order = spec, order
        self.name: str
        self.labelled: bool
        self._length: int
        self._made: Dataset | None = made
        self._fingerprint = ""
        self.name, self.labelled, self._length = _guarded(
            spec, lambda: (str(made.name), bool(made.labelled), len(made))
        )

    def __getstate__(self) -> dict[str, Any]:
        self.fingerprint()
        return {**self.__dict__, "_made": None}

    def __len__(self) -> int:
        return self._length

    def fingerprint(self) -> str:
        if not self._fingerprint:
            self._fingerprint = str(_guarded(self._spec, lambda: self._dataset().fingerprint()))
        return self._fingerprint

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        batches = _guarded(self._spec, lambda: iter(self._dataset().batches(size, start, stop)))
        while (batch := _guarded(self._spec, lambda: next(batches, None))) is not None:
            yield batch

    def subset(self, indices: Sequence[int]) -> _Called:
        order = list(indices) if self._order is None else [self._order[index] for index in indices]
        return _Called(self._spec, _guarded(self._spec, lambda: self._dataset().subset(indices)), order)

    def _dataset(self) -> Dataset:
        if self._made is None:
            made = _call(self._spec)
            self._made = made if self._order is None else made.subset(self._order)
            if self._made.fingerprint() != self._fingerprint:
                raise DataError(
                    f"{self._spec}: gives other data when it is called again, in a worker; fix its seed, "
                    "or leave `workers` out."
                )
        return self._made


def spool(
    spec: str, items: Iterable[Any], inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> FeedSource:
    """Items that can be gone through once, written to a temporary folder. spec: what messages name."""
    folder = Scratch()
    feeds: list[tuple[str, Callable[[], RawFeed]]] = []
    iterator = _guarded(spec, lambda: iter(items))
    end = object()
    while (item := _guarded(f"{spec}[{len(feeds)}]", lambda: next(iterator, end))) is not end:
        origin = f"{spec}[{len(feeds)}]"
        path = folder.path / f"{len(feeds)}.npz"
        arrays = feed_of(item, origin, inputs)
        write_npz(path, arrays, origin)
        feeds.append((origin, partial(read_npz, path)))
    return FeedSource(spec, feeds, inputs, preprocess, keep=folder)


def feed_of(item: Any, origin: str, inputs: Sequence[InputSpec]) -> RawFeed:
    """The arrays of an item by name: of a dict, an array or a pair (x, y). Raises DataError for another."""
    if isinstance(item, Mapping):
        return {str(name): _array(array, origin) for name, array in item.items()}
    name = sole_input(inputs, origin).name
    if isinstance(item, tuple | list) and len(item) == 2:
        return {name: _array(item[0], origin), "labels": _array(item[1], origin)}
    if isinstance(item, tuple | list) and len(item) == 1:
        return {name: _array(item[0], origin)}
    if hasattr(item, "__array__"):
        return {name: _array(item, origin)}
    raise DataError(f"{origin}: an item is a {type(item).__name__}; yield an array, a pair (x, y) or a dict.")


def _array(value: Any, origin: str) -> Any:
    return _guarded(origin, lambda: np.asarray(value))


_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

KIND = Kind(
    "module:callable",
    lambda spec: not Path(spec).exists() and _SPEC.fullmatch(spec) is not None,
    open_callable,
    runs_code=True,
)
