"""MX formats of the Open Compute Project (OCP Microscaling Formats v1.0): `mxfp4` and `mxint8`.

The weights of an output channel, laid out flat, are cut into blocks of 32 (the last of a row may be short). A
block has one scale 2^(e - 127), e an unsigned byte (E8M0); an element is E2M1, the numbers
0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign, or an int8 code c worth c / 64.

The encoder takes the specification's exponent, floor(log2 max|w|) less that of the largest element, or the
next one where the squared error is smaller. Elements are rounded to nearest, ties to even, and saturate;
int8 codes stay within +-127. docs/FORMATS.md has the bytes. No runtime has a kernel: a function of standard
operators decodes the weights, which ONNX Runtime folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import parser

from passes.core.errors import PolicyError
from passes.formats.base import Array, Float, RowGrid, RowTask, Stream, WeightFormat, finite
from passes.formats.bitstream import BitStream, Parts, with_rows
from passes.formats.dequantize import Dequantize
from passes.formats.encoded import EncodedWeight, as_held, blocks, rows_of, shaped
from passes.formats.form import Form, Geometry
from passes.formats.integer import by_channel, in_groups
from passes.formats.scheme import Scheme
from passes.rounding.second_order import Grid, Rounded, snapped
from runtime_ops.functions import geometry_tables

__all__ = ["MX_OP", "MxFp4", "MxInt8", "decode_mx"]

MX_OP = "MXDequantizeLinear"
BLOCK = 32
_BIAS = 127
# Magnitudes of E2M1 in halves, by the three bits of their code.
_LEVELS = np.asarray([0, 1, 2, 3, 4, 6, 8, 12], np.float64)
_FUNCTION = """<domain: "ai.onnxq", opset_import: ["" : OPSET]>
MXDequantizeLinear <bits, block_size, shape>
    (packed, exponents, elements, scales, granules, index, dims) => (y)
{
    codes = Cast <to = 6> (packed)
    looked_up = Gather (elements, codes)
    grouped = Reshape (looked_up, granules)
    exponent_codes = Cast <to = 6> (exponents)
    steps = Gather (scales, exponent_codes)
    spread = Gather <axis = 1> (steps, index)
    product = Mul (grouped, spread)
    y = Reshape (product, dims)
}"""


def _function(opset: int) -> onnx.FunctionProto:
    if opset < 14:
        raise ValueError(f"{MX_OP} needs opset 14, not {opset}")
    return parser.parse_function(_FUNCTION.replace("OPSET", str(opset)))


def _elements(bits: int) -> npt.NDArray[np.float32]:
    """What each byte holds: [256, 1] int8 codes over 64, or [256, 2] pairs of E2M1, the low half first."""
    byte = np.arange(256, dtype=np.uint8)
    if bits == 8:
        return np.asarray(byte.view(np.int8)[:, np.newaxis], np.float32) / np.float32(64)
    nibbles = np.stack([byte & 15, byte >> 4], axis=1)
    values = np.where(nibbles & 8, -1.0, 1.0) * _LEVELS[nibbles & 7] / 2
    return np.asarray(values, np.float32)


def _scales() -> npt.NDArray[np.float32]:
    """2^(e - 127) of each E8M0 byte; 255 is NaN."""
    powers = np.ldexp(np.float32(1), np.arange(255, dtype=np.int32) - _BIAS)
    return np.asarray([*powers, np.nan], np.float32)


def decode_mx(packed: Array, exponents: Array, bits: int, block: int, shape: Sequence[int]) -> Array:
    """What MXDequantizeLinear gives, float32 of `shape`. Raises ValueError for bad input."""
    if bits not in (4, 8) or block < 1 or not shape or min(shape) < 1:
        raise ValueError("MX has elements of 4 or 8 bits in blocks of a weight")
    rows, row_size = shape[0], math.prod(shape[1:])
    groups, count = -(-row_size // block), math.prod(shape)
    if packed.size * 8 < count * bits or exponents.size < rows * groups:
        raise ValueError(f"{count} elements of {bits} bits in {rows * groups} blocks need more bytes")
    values = _elements(bits)[packed.reshape(-1)].reshape(-1)[:count].reshape(rows, row_size)
    steps = _scales()[exponents.reshape(-1)[: rows * groups].reshape(rows, groups)]
    result: Array = values * np.repeat(steps, block, axis=1)[:, :row_size]
    return result.reshape(shape)


def _decode(
    arrays: Sequence[Array], attributes: Mapping[str, int], shape: Sequence[int], out: Array | None
) -> Array:
    packed, exponents = arrays
    found = decode_mx(packed, exponents, attributes["bits"], attributes["block_size"], shape)
    if out is None:
        return found
    np.copyto(out.reshape(found.shape), found)
    return out


def _text(attributes: Mapping[str, int], shape: Sequence[int], array: Callable[[int], Array | None]) -> str:
    return "mxfp4" if attributes.get("bits") == 4 else "mxint8"


class _Stream(BitStream):
    op = MX_OP

    def __init__(self, per_byte: int) -> None:
        self.per_byte = per_byte

    def padded(self, geometry: Geometry) -> int:
        """A byte holds two elements of four bits: rows of zeros fill the last one."""
        return geometry.channels + geometry.channels * geometry.row_size % self.per_byte

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        rows = self.padded(geometry)
        return rows * geometry.row_size * scheme.bits // 8 + rows * geometry.groups

    def wide_bytes(self, geometry: Geometry, scheme: Scheme) -> int:
        return 0

    def parts(self, encoded: EncodedWeight, scheme: Scheme, shape: tuple[int, ...], group_size: int) -> Parts:
        unit = 6 if scheme.bits == 8 else 1
        rows = encoded.rows
        codes = with_rows(np.asarray(rows.codes, np.int8), shape[0]).reshape(-1)
        if scheme.bits == 4:
            magnitude = np.searchsorted(_LEVELS, np.abs(codes)).astype(np.uint8)
            nibbles = magnitude | (np.uint8(8) * (codes < 0)).astype(np.uint8)
            packed = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
        else:
            packed = codes.view(np.uint8)
        exponents = np.frexp(rows.scale)[1] - 1 + unit + _BIAS
        own = {"packed": packed, "exponents": with_rows(exponents.astype(np.uint8), shape[0])}
        tables = {"elements": _elements(scheme.bits), "scales": _scales()}
        tables |= geometry_tables(shape, group_size)
        return Parts(own, tables, {"bits": scheme.bits, "block_size": group_size})


class _Rows(RowGrid):
    """The plain exponent, one finer and one coarser."""

    def __init__(self, kind: _Mx, task: RowTask) -> None:
        self.kind, self.task = kind, task
        self.plain = kind.encode(task.wanted, task.scheme, task.axis)

    def grid(self) -> Grid:
        plain, groups = self.plain.rows.scale.astype(np.float64), len(self.task.target)
        low, high = self.kind.exponents
        scales = np.stack([np.clip(plain * factor, 2.0**low, 2.0**high) for factor in (1.0, 0.5, 2.0)])
        zeros = np.zeros_like(scales)
        top, levels = self.kind.top, self.kind.levels
        size = self.plain.rows.group_size
        tried = (in_groups(scales, groups), in_groups(zeros, groups))
        return Grid(*tried, -top, top, size, levels=levels)

    def encoded(self, found: Rounded) -> EncodedWeight:
        codes, scale, _ = by_channel(found, self.task)
        return self.kind.shape(self.task.array, self.task.axis, self.task.scheme, codes, scale)


class _Mx(WeightFormat):
    """What the two have in common.

    unit: 2^-unit of a block's scale is one code. exponents: of the step of one code, so that the scale is a
    normal float32 and no weight overflows. levels: of codes, None for all whole numbers.
    """

    granularity = "block"
    block = BLOCK
    says_granularity = False
    trainable = True
    unit: int
    top: int
    exponents: tuple[int, int]
    levels: Float | None = None

    def check(self, scheme: Scheme) -> None:
        if scheme.bits not in self.bits:
            raise PolicyError(f"{self.prefix} has {self.bits[0]} bits, not {scheme.bits}")
        if scheme.block_size != BLOCK or not scheme.signed or not scheme.symmetric or scheme.dynamic:
            raise PolicyError(f"MX has blocks of {BLOCK}, and nothing else to choose: {self.example}")

    def _rounded(self, scaled: Float) -> Float:
        """Codes of weights in units of a code."""
        if self.levels is not None:
            return snapped(scaled, self.levels)
        codes: Float = np.clip(np.rint(scaled), -self.top, self.top)
        return codes

    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        grouped = blocks(rows_of(finite(array), axis), BLOCK).astype(np.float64)
        magnitude = np.abs(grouped).max(axis=-1)
        # floor(log2 max|w|) - emax: the largest element lies in the octave of the largest weight.
        least = np.frexp(magnitude)[1] - math.frexp(self.top)[1]
        tried = []
        for shift in (0, 1):
            step = np.clip(least + shift, *self.exponents)
            codes = self._rounded(np.ldexp(grouped, -step[..., np.newaxis]))
            error = np.square(np.ldexp(codes, step[..., np.newaxis]) - grouped).sum(axis=-1)
            tried.append((step, codes, error))
        (fine, fine_codes, fine_error), (coarse, coarse_codes, coarse_error) = tried
        better = coarse_error < fine_error
        step = np.where(magnitude > 0, np.where(better, coarse, fine), -self.unit)
        codes = np.where(better[..., np.newaxis], coarse_codes, fine_codes)
        channels = array.shape[axis]
        flat = codes.reshape(channels, -1)[:, : array.size // channels]
        return self.shape(np.asarray(array), axis, scheme, flat, np.ldexp(1.0, step))

    def shape(self, array: Array, axis: int, scheme: Scheme, codes: Array, scale: Array) -> EncodedWeight:
        """Codes [C, K] and the steps of their blocks [C, n] in the layout of a file."""
        coded = blocks(codes.astype(np.int8), BLOCK)
        steps = scale.astype(np.float32)[..., np.newaxis]
        real = as_held((coded.astype(np.float32) * steps).astype(np.float32), array.dtype)
        return shaped(array, axis, scheme, coded, real, steps, None)

    def code_range(self, scheme: Scheme) -> tuple[int, int]:
        return -self.top, self.top

    def recoded(self, held: EncodedWeight, array: Array, scheme: Scheme, codes: Array) -> EncodedWeight:
        return self.shape(array, held.channel_axis, scheme, codes, held.rows.scale)

    def grid(self, task: RowTask) -> RowGrid:
        return _Rows(self, task)


_STREAMS = (Stream(MX_OP, ("uint8", "uint8"), _decode, _text, _function),)


class MxFp4(_Mx):
    name = "mxfp"
    prefix = "mxfp"
    bits = (4,)
    example = "mxfp4"
    learnable = False
    streams = _STREAMS
    no_standard_form = "MXFP4 has no form in ONNX's own types that runtimes read"
    unit = 1
    top = 12
    exponents = (-127, 124)
    levels = _LEVELS

    def unlearned(self, scheme: Scheme) -> str | None:
        return "MXFP4's uneven steps are not learned: rounded as by gptq"

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        return (_Stream(2),)


class MxInt8(_Mx):
    name = "mxint"
    prefix = "mxint"
    bits = (8,)
    example = "mxint8"
    streams = _STREAMS
    unit = 6
    top = 127
    exponents = (-126, 121)

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        return _Stream(1), Dequantize("float")
