"""What a scheme lets a weight become: the scales that data-aware rounding tries, row by row.

The plain encoder's scales come first, then
- GSE: one exponent finer and one coarser, within the window of 5 bits.
- symmetric integers: the plain scale times 0.8 to 1.2, and for whole rows one closed-form fit.
- asymmetric integers: the plain range with the parts below and above zero times 0.6 to 1, and the same fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.layers import Layer
from passes.policy import Scheme
from passes.scales import fits_half, represented
from passes.weights import EncodedWeight, code_range, encode_layer, shape_gse, shape_integers
from runtime_ops.gse import EXPONENT_BITS, GSETensor
from runtime_ops.rounding import Grid, Rounded

__all__ = ["RowFormat"]

Float = npt.NDArray[np.float64]
_FACTORS = (1.0, 0.8, 0.9, 1.1, 1.2)
# Of the parts of a range below and above zero.
_RANGES = (
    (1.0, 1.0), (0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.9, 1.0),
    (1.0, 0.9), (0.8, 1.0), (1.0, 0.8), (0.6, 0.8), (0.8, 0.6),
)  # fmt: skip
_SHIFTS = (0, -1, 1)


def _layout(item: npt.NDArray[Any], groups: int) -> Float:
    """[..., C, n] as [..., groups, C / groups, n]."""
    wide = np.asarray(item, np.float64)
    return wide.reshape(*wide.shape[:-2], groups, -1, wide.shape[-1])


class RowFormat:
    """One scheme for one weight: the scales to try, and rounded rows back to an EncodedWeight.

    plain: W1 as the plain encoder has it.
    """

    def __init__(
        self,
        layer: Layer,
        array: npt.NDArray[Any],
        scheme: Scheme,
        target: Float,
        *,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> None:
        """array: the weight before rounding, for its shape and dtype. target: W1 [N, M, K]. floor: least
        scale by channel; half: float16 scales if they fit (`encode_layer`)."""
        self.array, self.scheme, self.groups = array, scheme, len(target)
        self.axis = axis = layer.channel_axis
        moved = [array.shape[axis], *np.delete(array.shape, axis)]
        wanted = np.moveaxis(target.reshape(moved), 0, axis).astype(array.dtype)
        self.floor = floor
        self.plain = encode_layer(layer, wanted, scheme, floor, half)
        self.half = (half or array.dtype == np.float16) and fits_half(self.plain.rows.scale, scheme.bits)

    def represent(self, scale: Float) -> Float:
        """Scales [..., n] as the file will hold them."""
        held = scale.astype(np.float32)
        if self.floor is not None and self.scheme.granularity != "block":
            least = self.floor.max() if self.scheme.granularity == "tensor" else self.floor.reshape(-1, 1)
            held = np.maximum(held, np.broadcast_to(least, (self.floor.size, 1)).reshape(-1, *held.shape[1:]))
        return represented(held, self.half)

    def grid(self) -> Grid:
        """The candidates of every group of columns, the plain encoder's first."""
        scheme = self.scheme
        low, high = code_range(scheme)
        if self.plain.gse is not None:
            gse = self.plain.gse
            codes = [
                np.clip(gse.codes.astype(np.int32) + shift, 0, (1 << EXPONENT_BITS) - 1) for shift in _SHIFTS
            ]
            scales = np.stack([np.ldexp(1.0, code + gse.exponent_base) for code in codes])
            zeros = np.zeros_like(scales)
        else:
            scales, zeros = self._symmetric() if scheme.symmetric else self._asymmetric(low, high)
        return Grid(
            _layout(scales, self.groups),
            _layout(zeros, self.groups),
            low,
            high,
            self.plain.rows.group_size,
            shared=scheme.granularity == "tensor",
        )

    def _symmetric(self) -> tuple[Float, Float]:
        """Scales and zero points to try, [A, C, n]."""
        rows = self.plain.rows
        scales = np.stack([self.represent(rows.scale * np.float64(factor)) for factor in _FACTORS])
        return scales, np.broadcast_to(rows.zero_point.astype(np.float64), scales.shape)

    def _asymmetric(self, low: int, high: int) -> tuple[Float, Float]:
        """As `_symmetric`, from the two parts of the range; zero stays representable."""
        rows = self.plain.rows
        zero, scale = rows.zero_point.astype(np.float64), rows.scale.astype(np.float64)
        parts = [((zero - low) * scale * below, (high - zero) * scale * above) for below, above in _RANGES]
        scales = np.stack([self.represent((below + above) / (high - low)) for below, above in parts])
        bottoms = np.stack([below for below, _ in parts])
        return scales, np.clip(np.rint(low + bottoms / scales), low, high)

    def refit(self) -> Callable[[Float], Float] | None:
        """How scales [N, M, 1] are represented, where a closed-form fit is of use."""
        if self.plain.gse is not None or self.scheme.granularity == "block":
            return None

        def represent(scale: Float) -> Float:
            return self.represent(scale.reshape(-1, scale.shape[-1])).reshape(scale.shape)

        return represent

    def encoded(self, found: Rounded) -> EncodedWeight:
        """Rounded rows, whose scales are candidates of the grid or `represent`ed, in the layout of a file."""
        channels = self.array.shape[self.axis]
        codes = found.codes.reshape(channels, -1)
        scale, zero = (item.reshape(channels, -1) for item in (found.scale, found.zero))
        if self.plain.gse is not None:
            held = self.plain.gse
            exponents = (np.frexp(scale)[1] - 1 - held.exponent_base).astype(np.uint8)
            # An all-zero group keeps the lowest exponent, as the plain encoder writes it.
            exponents[~_group_any(codes, held.group_size)] = 0
            gse = GSETensor(
                codes.astype(np.int8),
                exponents,
                held.exponent_base,
                held.bits,
                held.group_size,
                held.raised,
                held.loss,
            )
            return shape_gse(self.array, self.axis, self.scheme, gse)
        return shape_integers(self.array, self.axis, self.scheme, codes, scale, zero)


def _group_any(codes: Float, size: int) -> npt.NDArray[np.bool_]:
    """[C, n]: whether a group has any code but 0."""
    starts = np.arange(0, codes.shape[1], size)
    return np.logical_or.reduceat(codes != 0, starts, axis=1)
