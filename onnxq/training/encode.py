"""From trained tensors to the encodings of passes/formats/, value for value."""

from __future__ import annotations

import numpy as np
import torch

from passes.formats.integer import shape_integers
from passes.formats.weights import EncodedWeight, encode_layer
from passes.graph.layers import Layer
from passes.policy import Scheme

__all__ = ["integer_rows", "integer_weight", "plain_weight"]

Tensor = torch.Tensor


def _array(weight: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return weight.detach().cpu().numpy().astype(np.float32)


def integer_weight(
    layer: Layer, weight: Tensor, scheme: Scheme, codes: Tensor, step: Tensor
) -> EncodedWeight:
    """Signed codes of the weight's shape and one step for the tensor."""
    rows = np.moveaxis(_array(codes), layer.channel_axis, 0)
    flat = rows.reshape(len(rows), -1)
    return integer_rows(layer, weight, scheme, flat, np.full((len(flat), 1), float(step), np.float32))


def integer_rows(
    layer: Layer,
    weight: Tensor,
    scheme: Scheme,
    codes: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    steps: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> EncodedWeight:
    """Signed codes [C, K] with steps [C, groups]."""
    return shape_integers(
        _array(weight), layer.channel_axis, scheme, codes, steps, np.zeros(steps.shape, np.int8)
    )


def plain_weight(layer: Layer, weight: Tensor, scheme: Scheme) -> EncodedWeight:
    """The weight as its format's own encoder has it, in every step too."""
    return encode_layer(layer, _array(weight), scheme)
