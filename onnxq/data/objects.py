"""Data that a program holds: arrays, dicts of arrays, sequences and iterables of items, or a Dataset.

An item is what `module:callable` gives: a dict by input name, an array, or a pair (x, y); one sample or one
batch. An iterator is written to a temporary folder once, so that it can be read again in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from onnxq.data.callables import feed_of, spool
from onnxq.data.dataset import Dataset
from onnxq.data.feeds import FeedSource, RawFeed
from onnxq.data.inputs import InputSpec
from onnxq.data.preprocess import Preprocess
from passes.core.errors import DataError

__all__ = ["open_object"]


def open_object(
    data: Any, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> FeedSource | Dataset:
    """The samples that an object holds. Raises DataError for an object that holds none, or no arrays."""
    if isinstance(data, Dataset):
        if preprocess is not None:
            raise DataError(f"{data.name}: a Dataset prepares its own samples; drop `preprocess`.")
        return data
    name = f"the given {type(data).__name__}"
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        arrays = feed_of(data, name, inputs)
        return FeedSource(name, [(name, partial(_same, arrays))], inputs, preprocess)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        loaders = [(f"{name}[{i}]", partial(_item, item, name, i, inputs)) for i, item in enumerate(data)]
        return FeedSource(name, loaders, inputs, preprocess)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return spool(name, data, inputs, preprocess)
    raise DataError(
        f"{name}: is not data; give an array, a dict of arrays by input name, an iterable of these or of "
        "pairs (x, y), or a path."
    )


def _same(arrays: RawFeed) -> RawFeed:
    return arrays


def _item(item: Any, name: str, index: int, inputs: Sequence[InputSpec]) -> RawFeed:
    return feed_of(item, f"{name}[{index}]", inputs)
