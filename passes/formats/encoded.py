"""A weight as codes: what every format's encoder gives, and what writers, biases and rounding read.

Layouts. Per tensor: scalar scale. Per channel: scale [C] along the channel axis. Per block: the weights of
one output channel are laid out flat (input channels x kernel) as a row of a matrix [C, K], cut into blocks of
`block_size` (the last one may be short); scale [C, ceil(K / block_size)]. Matrices (Gemm, MatMul) keep their
own layout, with the blocks along the other axis than the channels and the scales laid out alike; others are
reshaped (and transposed where the channels are not the first axis) behind the node that decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.formats.scheme import Scheme

__all__ = ["EncodedWeight", "Rows", "as_held", "blocks", "channels_back", "rows_of", "shaped", "unsigned"]


@dataclass(frozen=True)
class Rows:
    """A weight's codes with one row an output channel: codes [C, K]; scale and zero_point [C, groups]."""

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    group_size: int


@dataclass(frozen=True)
class EncodedWeight:
    """Codes of one weight.

    codes, int8/int16 or unsigned (uint16 for a trellis): [C, K] for blocks of what is not a matrix, else the
    weight's own shape. scale, float32: [], [C], or as many as there are blocks, laid out as the codes are.
    zero_point: as scale, None where it is 0. axis: of DequantizeLinear. channel_axis: of the weight.
    decoded, float32: the weight's own shape, what the network will compute with.
    rows: the same codes and scales by output channel. own: what the format keeps beside, for itself alone.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any] | None
    axis: int
    block_size: int
    channel_axis: int
    decoded: npt.NDArray[np.float32]
    rows: Rows
    own: object = None


def rows_of(array: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """[C, K]: one row an output channel."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def blocks(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """[C, blocks, size], the last block padded with zeros, which change neither ranges nor errors."""
    count = -(-rows.shape[1] // size)
    padded = np.pad(rows, ((0, 0), (0, count * size - rows.shape[1])))
    return padded.reshape(rows.shape[0], count, size)


def as_held(real: npt.NDArray[np.float32], dtype: Any) -> npt.NDArray[np.float32]:
    """Decoded numbers as a weight of that float type holds them."""
    return real.astype(np.float16).astype(np.float32) if np.dtype(dtype) == np.float16 else real


def channels_back(rank: int, axis: int) -> list[int]:
    """Permutation that brings output channels, the first axis, back to `axis`."""
    order = list(range(1, rank))
    order.insert(axis, 0)
    return order


def unsigned(encoded: EncodedWeight) -> EncodedWeight:
    """int8 codes and zero points as uint8 around 128; anything else as it is."""
    if encoded.codes.dtype != np.int8:
        return encoded
    zero = np.zeros(encoded.scale.shape, np.int8) if encoded.zero_point is None else encoded.zero_point
    codes, middle = ((array.astype(np.int16) + 128).astype(np.uint8) for array in (encoded.codes, zero))
    return replace(encoded, codes=codes, zero_point=middle)


def shaped(
    weight: npt.NDArray[Any],
    axis: int,
    scheme: Scheme,
    coded: npt.NDArray[Any],
    real: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    zero: npt.NDArray[Any] | None,
) -> EncodedWeight:
    """Codes and scales in the layout of the module's docstring."""
    channels = weight.shape[axis]
    rows = weight.size // channels

    def restore(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        moved = matrix.reshape([channels, *np.delete(weight.shape, axis)])
        return np.ascontiguousarray(np.moveaxis(moved, 0, axis))

    flat = coded.reshape(channels, -1)[:, :rows]

    def by_row(item: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(item.reshape(len(scale), -1), (channels, scale.size // len(scale)))

    held_zero = np.zeros(scale.shape, coded.dtype) if zero is None else zero
    held = Rows(flat, by_row(scale), by_row(held_zero), scheme.block_size or rows)
    decoded = restore(real.reshape(channels, -1)[:, :rows])
    if scheme.granularity != "block":
        dims = (channels,) if scheme.granularity == "channel" else ()
        zeros = None if zero is None else zero.reshape(dims)
        return EncodedWeight(restore(flat), scale.reshape(dims), zeros, axis, 0, axis, decoded, held)

    def layout(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = matrix.T if weight.ndim == 2 and axis == 1 else matrix
        return np.ascontiguousarray(turned)

    zeros = None if zero is None else layout(zero.reshape(scale.shape[:2]))
    across = 1 - axis if weight.ndim == 2 else 1
    scales = layout(scale.reshape(scale.shape[:2]))
    return EncodedWeight(layout(flat), scales, zeros, across, scheme.block_size, axis, decoded, held)
