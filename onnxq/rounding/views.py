"""Calibration images as they are and, where asked for, mirrored: more data for rounding, for twice the time.

Below 6 bits rounding is short of data: the moments of a layer of a thousand inputs come from a few thousand
positions. Left and right are alike to a network that looks at colour photographs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.data.dataset import Dataset
from onnxq.data.inputs import InputSpec, Sample

__all__ = ["colour_images", "views"]

_COLOURS = 3


def _width_axis(shape: tuple[Any, ...]) -> int | None:
    """The axis of columns of a batch of colour images, channels first or last; None for anything else."""
    if len(shape) != 4:
        return None
    return 3 if shape[1] == _COLOURS else 2 if shape[3] == _COLOURS else None


def colour_images(specs: list[InputSpec]) -> bool:
    """Whether a model has one input and that takes colour images, [N, 3, H, W] or [N, H, W, 3]."""
    return len(specs) == 1 and _width_axis(tuple(specs[0].shape)) is not None


def views(dataset: Dataset, size: int, mirror: bool) -> Iterator[Sample]:
    """Feeds of at most `size` samples: the dataset, and then, with `mirror`, all of it mirrored."""
    for batch in dataset.batches(size):
        yield batch.inputs
    if mirror:
        for batch in dataset.batches(size):
            yield {name: _mirrored(array) for name, array in batch.inputs.items()}


def _mirrored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    axis = _width_axis(array.shape)
    assert axis is not None  # `colour_images` said so of the model
    return np.ascontiguousarray(np.flip(array, axis))
