"""Weights of layers as codes: the format's encoder, with errors that name the layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.core.errors import UnsupportedModelError
from passes.formats import Scheme, format_of
from passes.formats.encoded import EncodedWeight
from passes.graph.layers import Layer

__all__ = ["EncodedWeight", "encode_layer", "encode_weight", "naming"]


def encode_weight(
    array: npt.NDArray[Any],
    scheme: Scheme,
    axis: int,
    floor: npt.NDArray[np.float32] | None = None,
    half: bool = False,
) -> EncodedWeight:
    """Encode a weight, float16 or float32 of any shape, with output channels on `axis`.

    floor: least scale per channel [C] (or scalar), used to keep int32 biases in range. half: scales of
    float16, if it can hold them, as bit streams have them; those of float16 weights always are
    (passes/formats/scales.py).
    Raises UnsupportedModelError for NaN or Inf.
    """
    return format_of(scheme).encode(array, scheme, axis, floor, half)


def encode_layer(
    layer: Layer,
    array: npt.NDArray[Any],
    scheme: Scheme,
    floor: npt.NDArray[np.float32] | None = None,
    half: bool = False,
) -> EncodedWeight:
    """`encode_weight` for a layer. Its errors name the layer and the weight."""
    with naming(layer):
        return encode_weight(array, scheme, layer.channel_axis, floor, half)


@contextmanager
def naming(layer: Layer) -> Iterator[None]:
    """Errors about a weight name it and its layer."""
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"weight '{layer.weight}' of {layer.name} {error}") from None
