"""What a layer multiplies its weights with: its input as columns, one per output position that was picked.

For output position p (of all spatial axes) and tap t of the kernel, an axis of length L reads

    index = p * stride + t * dilation - pad_begin,   zero where it falls outside of 0 .. L - 1,

so that y[c, p] = sum over (i, t) of W[c, i, t] x[i, index(p, t)] + b[c]. Columns lie as [groups, K, n]: K
input channels of the group times taps, in the order of the weight; n images times positions. Nothing is
unfolded but the picked positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.graph.layers import Layer

__all__ = ["ConvPatches", "MatrixRows", "patches_of"]

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConvPatches:
    """A convolution's geometry; sequences have one entry a spatial axis, pads begins then ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int

    def _begins(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """(pad_begin, output length) of each axis."""
        begins, sizes = [], []
        for axis, length in enumerate(lengths):
            span, stride = (self.kernel[axis] - 1) * self.dilations[axis] + 1, self.strides[axis]
            if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                size = -(-length // stride)
                total = max((size - 1) * stride + span - length, 0)
                begins.append(total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2)
            else:
                explicit = self.auto_pad == "NOTSET"
                begin = self.pads[axis] if explicit else 0
                end = self.pads[axis + len(lengths)] if explicit else 0
                size = (length + begin + end - span) // stride + 1
                begins.append(begin)
            sizes.append(size)
        return begins, sizes

    def positions(self, shape: Sequence[int]) -> int:
        """Output positions of one image of an input of that shape."""
        return math.prod(self._begins(shape[2:])[1])

    def columns(self, array: npt.NDArray[Any], picked: npt.NDArray[np.intp]) -> Float:
        """float32 [groups, K, images * len(picked)] of an input [images, channels, *spatial]."""
        lengths = array.shape[2:]
        begins, sizes = self._begins(lengths)
        where = np.unravel_index(picked, sizes)
        flat = np.zeros((1, len(picked)), np.intp)
        inside = np.ones((1, len(picked)), bool)
        for axis, length in enumerate(lengths):
            taps = np.arange(self.kernel[axis]) * self.dilations[axis] - begins[axis]
            index = where[axis] * self.strides[axis] + taps[:, np.newaxis]
            flat = (flat[:, np.newaxis] * length + np.clip(index, 0, length - 1)).reshape(-1, len(picked))
            inside = (inside[:, np.newaxis] & (index >= 0) & (index < length)).reshape(-1, len(picked))
        images, channels = array.shape[:2]
        found = np.take(array.reshape(images, channels, -1), flat, axis=2).astype(np.float32, copy=False)
        if not inside.all():
            found *= inside
        split = found.reshape(images, self.groups, -1, len(picked))
        return np.ascontiguousarray(split.transpose(1, 2, 0, 3)).reshape(self.groups, split.shape[2], -1)

    def outputs(self, array: npt.NDArray[Any], picked: npt.NDArray[np.intp]) -> Float:
        """float32 [channels, images * len(picked)] of an output-shaped tensor, in the order of `columns`."""
        found = array.reshape(*array.shape[:2], -1)[:, :, picked].astype(np.float32)
        return found.transpose(1, 0, 2).reshape(array.shape[1], -1)


@dataclass(frozen=True)
class MatrixRows:
    """Input of a matrix product: `last`, whether the summed axis is the last one (else the one before)."""

    last: bool

    def positions(self, shape: Sequence[int]) -> int:
        """Rows of one chunk of that shape (a matrix product knows no images)."""
        return math.prod(shape) // max(shape[-1] if self.last else shape[-2], 1)

    def columns(self, array: npt.NDArray[Any], picked: npt.NDArray[np.intp]) -> Float:
        """float32 [1, K, len(picked)]."""
        moved = array if self.last else np.swapaxes(array, -1, -2)
        rows = moved.reshape(-1, moved.shape[-1])[picked]
        return np.ascontiguousarray(rows.T, dtype=np.float32)[np.newaxis]

    def outputs(self, array: npt.NDArray[Any], picked: npt.NDArray[np.intp]) -> Float:
        """float32 [channels, len(picked)] of an output-shaped tensor, in the order of `columns`."""
        moved = array if self.last else np.swapaxes(array, -1, -2)
        return moved.reshape(-1, moved.shape[-1])[picked].T.astype(np.float32)


def patches_of(layer: Layer, attributes: Mapping[str, Any], weight_input: int) -> ConvPatches | MatrixRows:
    """Of a Conv, Gemm or MatMul with these ONNX attributes, whose weight is input `weight_input`."""
    if layer.op == "Gemm":
        return MatrixRows(last=not attributes.get("transA", 0))
    if layer.op == "MatMul":
        return MatrixRows(last=weight_input == 1)
    rank = len(layer.weight_shape) - 2
    auto = attributes.get("auto_pad", "NOTSET")
    return ConvPatches(
        kernel=tuple(layer.weight_shape[2:]),
        strides=tuple(attributes.get("strides", [1] * rank)),
        dilations=tuple(attributes.get("dilations", [1] * rank)),
        pads=tuple(attributes.get("pads", [0] * 2 * rank)),
        auto_pad=auto.decode() if isinstance(auto, bytes) else auto,
        groups=layer.groups,
    )
