"""Integers of 2 to 8 and 16 bits, signed or not, with one scale per tensor, output channel or block.

Scales below 8 bits are chosen by least squares. In a file they are ONNX's own types behind DequantizeLinear;
3, 5, 6 and 7 bits, which ONNX has no type for, are bit streams where no integer kernel is to read them. A
stream holds signed codes: an unsigned scheme is the same grid, codes and zero points less 2^(b-1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from passes.core.errors import PolicyError
from passes.formats.base import Array, Float, RowGrid, RowTask, Stream, WeightFormat, finite
from passes.formats.bitstream import BitStream, Parts, with_rows
from passes.formats.dequantize import Dequantize
from passes.formats.encoded import EncodedWeight, as_held, blocks, rows_of, shaped
from passes.formats.form import Form, Geometry
from passes.formats.scales import as_stored, fits_half, represented
from passes.formats.scheme import Scheme
from passes.rounding.second_order import Grid, Rounded
from runtime_ops import IntegerFormat, affine_parameters, dequantize, quantize, symmetric_scale
from runtime_ops.bitpack import pack_bits
from runtime_ops.decode import decode_packed_affine
from runtime_ops.functions import PACKED_OP, affine_tables, function

__all__ = ["INTEGER_BITS", "Integer", "shape_integers", "weight_format"]

INTEGER_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_NO_TYPE = (3, 5, 6, 7)
_FACTORS = (1.0, 0.8, 0.9, 1.1, 1.2)
# Of the parts of a range below and above zero.
_RANGES = (
    (1.0, 1.0), (0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.9, 1.0),
    (1.0, 0.9), (0.8, 1.0), (1.0, 0.8), (0.6, 0.8), (0.8, 0.6),
)  # fmt: skip


def weight_format(scheme: Scheme) -> IntegerFormat:
    """8- and 16-bit symmetric formats drop the most negative code, as ONNX Runtime's kernels expect."""
    return IntegerFormat(
        scheme.bits, scheme.signed, narrow=scheme.symmetric and scheme.signed and scheme.bits >= 8
    )


def _parameters(
    grouped: npt.NDArray[np.float32], scheme: Scheme, axes: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], Array]:
    """Scale and zero point over `axes`. Symmetric unsigned codes have their zero in the middle."""
    fmt = weight_format(scheme)
    if not scheme.symmetric:
        low, high = grouped.min(axis=axes, keepdims=True), grouped.max(axis=axes, keepdims=True)
        return affine_parameters(low, high, fmt)
    signed = IntegerFormat(scheme.bits, narrow=scheme.bits >= 8)
    scale = symmetric_scale(grouped, signed, axes, search=scheme.bits < 8)
    return scale, np.full_like(scale, 0 if scheme.signed else 1 << (scheme.bits - 1), dtype=fmt.container)


def shape_integers(
    array: Array, axis: int, scheme: Scheme, codes: Array, scale: Array, zero: Array
) -> EncodedWeight:
    """A weight that was encoded elsewhere: codes [C, K], scale and zero [C, groups], equal in all rows for
    one scale a tensor. array: the float weight, for its shape and type."""
    fmt = weight_format(scheme)
    if scheme.granularity == "block":
        coded = blocks(codes.astype(fmt.container), scheme.block_size)
        held, middle = scale[..., np.newaxis], zero[..., np.newaxis]
    else:
        rows = 1 if scheme.granularity == "tensor" else len(scale)
        coded, held, middle = codes.astype(fmt.container), scale[:rows], zero[:rows]
    held, middle = held.astype(np.float32), middle.astype(fmt.container)
    real = as_held(dequantize(coded, held, middle), array.dtype)
    return shaped(array, axis, scheme, coded, real, held, middle if middle.any() else None)


class _Packed(BitStream):
    op = PACKED_OP

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        rows = self.padded(geometry)
        return -(-rows * geometry.row_size * scheme.bits // 8) + 3 * rows * geometry.groups

    def parts(self, encoded: EncodedWeight, scheme: Scheme, shape: tuple[int, ...], group_size: int) -> Parts:
        rows = encoded.rows
        middle = 0 if scheme.signed else 1 << (scheme.bits - 1)
        codes, zeros = (array.astype(np.int16) - middle for array in (rows.codes, rows.zero_point))
        own = {
            "packed": pack_bits(with_rows(codes, shape[0]), scheme.bits),
            "scale": with_rows(as_stored(rows.scale), shape[0]),
            "zero_point": with_rows(zeros, shape[0]).astype(np.int8),
        }
        tables = dict(affine_tables(scheme.bits, group_size, shape))
        return Parts(own, tables, {"bits": scheme.bits, "group_size": group_size})


class _Rows(RowGrid):
    """The plain scale times 0.8 to 1.2, and for whole rows one closed-form fit; of asymmetric integers the
    plain range with the parts below and above zero times 0.6 to 1, and the same fit."""

    def __init__(self, task: RowTask, plain: EncodedWeight) -> None:
        self.task, self.scheme, self.plain = task, task.scheme, plain
        half = task.half or task.array.dtype == np.float16
        self.half = half and fits_half(plain.rows.scale, task.scheme.bits)

    def represent(self, scale: Float) -> Float:
        """Scales [..., n] as the file will hold them."""
        held, floor = scale.astype(np.float32), self.task.floor
        if floor is not None and self.scheme.granularity != "block":
            least = floor.max() if self.scheme.granularity == "tensor" else floor.reshape(-1, 1)
            held = np.maximum(held, np.broadcast_to(least, (floor.size, 1)).reshape(-1, *held.shape[1:]))
        return represented(held, self.half)

    def grid(self) -> Grid:
        fmt, scheme = weight_format(self.scheme), self.scheme
        scales, zeros = self._symmetric() if scheme.symmetric else self._asymmetric(fmt.lowest, fmt.highest)
        groups = len(self.task.target)
        return Grid(
            in_groups(scales, groups),
            in_groups(zeros, groups),
            fmt.lowest,
            fmt.highest,
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
        if self.scheme.granularity == "block":
            return None

        def represent(scale: Float) -> Float:
            return self.represent(scale.reshape(-1, scale.shape[-1])).reshape(scale.shape)

        return represent

    def encoded(self, found: Rounded) -> EncodedWeight:
        codes, scale, zero = by_channel(found, self.task)
        return shape_integers(self.task.array, self.task.axis, self.scheme, codes, scale, zero)


def in_groups(item: Array, groups: int) -> Float:
    """[..., C, n] as [..., groups, C / groups, n]."""
    wide = np.asarray(item, np.float64)
    return wide.reshape(*wide.shape[:-2], groups, -1, wide.shape[-1])


def by_channel(found: Rounded, task: RowTask) -> tuple[Float, Float, Float]:
    """Codes [C, K], scale and zero [C, n] of rounded rows."""
    channels = task.array.shape[task.axis]
    codes, scale, zero = (item.reshape(channels, -1) for item in (found.codes, found.scale, found.zero))
    return codes, scale, zero


def _decode(
    arrays: Sequence[Array], attributes: Mapping[str, int], shape: Sequence[int], out: Array | None
) -> Array:
    packed, scale, zero = arrays
    return decode_packed_affine(packed, scale, zero, attributes["bits"], attributes["group_size"], shape, out)


def _text(attributes: Mapping[str, int], shape: Sequence[int], array: Callable[[int], Array | None]) -> str:
    row_size, size = int(np.prod(shape[1:])), attributes.get("group_size", 0)
    granularity = f"block{size}" if size < row_size else "channel"
    zeros = array(2)
    asymmetric = ":asym" if zeros is not None and zeros.any() else ""
    return f"int{attributes.get('bits', 0)}:{granularity}{asymmetric}"


class Integer(WeightFormat):
    name = "int"
    prefix = "int"
    bits = INTEGER_BITS
    example = "int8, uint8, int4:block32, int8:channel"
    is_integer = True
    streams = (
        Stream(PACKED_OP, ("uint8", "scale", "int8"), _decode, _text, lambda n: function(PACKED_OP, n)),
    )

    def __init__(self) -> None:
        self._dequantize, self._packed = Dequantize("codes"), _Packed()

    def check(self, scheme: Scheme) -> None:
        if scheme.bits not in INTEGER_BITS:
            raise PolicyError(f"an integer scheme has 2 to 8 or 16 bits, not {scheme.bits}")

    def activations(self, scheme: Scheme, text: str) -> Scheme:
        """Asymmetric unless `sym` is said; one scale per tensor."""
        if "sym" not in text.lower().split(":"):
            scheme = Scheme.parse(text if "asym" in text else f"{text}:asym")
        if scheme.granularity != "tensor":
            raise PolicyError(f"'{text}': activations have one scale per tensor; drop the granularity")
        return scheme

    activation_rule = "activations have one scale per tensor"

    def holds_activations(self, scheme: Scheme) -> bool:
        return scheme.granularity == "tensor"

    def activation_opset(self, scheme: Scheme) -> int:
        """Static activations take 13: a DequantizeLinear per channel keeps float layers between two pairs
        float (passes/placement/activations.py), and ONNX Runtime runs MaxPool on integers from 12 on."""
        return 21 if scheme.bits == 16 else 11 if scheme.dynamic else 13

    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        weight = finite(array)
        rows = rows_of(weight, axis)
        grouped = blocks(rows, scheme.block_size) if scheme.granularity == "block" else rows
        axes: tuple[int, ...] = {"block": (2,), "channel": (1,), "tensor": (0, 1)}[scheme.granularity]
        scale, zero = _parameters(grouped, scheme, axes)
        if floor is not None:
            shape = [-1] + [1] * (scale.ndim - 1)
            wanted = floor.reshape(shape) if scheme.granularity != "tensor" else floor.max()
            scale = np.maximum(scale, wanted.astype(np.float32))
        half = half or np.asarray(array).dtype == np.float16
        scale = represented(scale, half and fits_half(scale, scheme.bits)).astype(np.float32)
        coded = quantize(grouped, scale, zero, weight_format(scheme))
        real = as_held(dequantize(coded, scale, zero), np.asarray(array).dtype)
        return shaped(weight, axis, scheme, coded, real, scale, zero if zero.any() else None)

    def code_range(self, scheme: Scheme) -> tuple[int, int]:
        fmt = weight_format(scheme)
        return fmt.lowest, fmt.highest

    def recoded(self, held: EncodedWeight, array: Array, scheme: Scheme, codes: Array) -> EncodedWeight:
        return shape_integers(array, held.channel_axis, scheme, codes, held.rows.scale, held.rows.zero_point)

    def grid(self, task: RowTask) -> RowGrid:
        plain = self.encode(task.wanted, task.scheme, task.axis, task.floor, task.half)
        return _Rows(task, plain)

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        stream: tuple[Form, ...] = (self._packed,) if scheme.bits in _NO_TYPE else ()
        return (*stream, self._dequantize)
