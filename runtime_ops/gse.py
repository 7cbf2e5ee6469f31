"""GSE (group-shared exponent) numbers: the numpy reference, exact to the bit.

A weight lies as R rows (output channels) of K values (input channels x kernel, flat). A row is cut into
n = ceil(K / G) groups of G values, the last one may be short; a group shares one exponent. With mantissas
of b bits (2 <= b <= 8, two's complement)

    value = m * 2^k,   k = e - (b - 1) = exponent_base + code,   0 <= code <= 31

where e is the group's exponent in GSE-MN4's notation (2^e bounds the group's magnitudes). The file holds 5
bits of `code` a group and one `exponent_base` a tensor, anchored so that the largest exponent gets code 31
(or less, where k would leave normal float32). Exponents below that window are raised into it; `raised`
counts them and `loss` says what it cost. Storage of a tensor in bits: b * R * K + 5 * R * n.

Encoders:
- `paper` (GSE-MN4, section 3): e is the smallest integer with max|x| < 2^e, magnitudes are rounded towards
  zero and clamped to 2^(b-1) - 1.
- `nearest` (the default): round half to even, two's complement, and e is that of the paper or one less,
  whichever gives the group the smaller squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime_ops.bitpack import unpack_bits

__all__ = [
    "EXPONENT_BITS",
    "Encoder",
    "GSETensor",
    "check_exponent_base",
    "decode_affine",
    "decode_gse",
    "each_value",
    "encode_gse",
    "gse_bits",
    "quantize_groups",
    "row_geometry",
    "step_range",
]

Float = npt.NDArray[np.float32]
Encoder = Literal["nearest", "paper"]
EXPONENT_BITS = 5
_WINDOW = (1 << EXPONENT_BITS) - 1
# Values that are worked on at a time: in float64 they stay in the processor's cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class GSETensor:
    """A tensor in GSE.

    mantissas: int8 [R, K]. codes: uint8 [R, n], 0 to 31. exponent_base: k of code 0.
    raised: groups that lost by having an exponent outside of the window of 5 bits. loss: the largest absolute
    error that this caused beyond half a step of the group's own exponent; 0.0 where nothing was raised.
    """

    mantissas: npt.NDArray[np.int8]
    codes: npt.NDArray[np.uint8]
    exponent_base: int
    bits: int
    group_size: int
    raised: int = 0
    loss: float = 0.0

    @property
    def steps(self) -> Float:
        """2^k per group, float32 [R, n]."""
        return np.ldexp(np.float32(1), self.codes.astype(np.int32) + self.exponent_base).astype(np.float32)

    def decoded(self) -> Float:
        """The values, float32 [R, K]."""
        return _spread(self.mantissas.astype(np.float32), self.steps, self.group_size)


def step_range(bits: int) -> tuple[int, int]:
    """Least and largest legal `exponent_base`: steps stay normal float32, and no value overflows."""
    return -126, 128 - bits - _WINDOW


def check_exponent_base(exponent_base: int, bits: int) -> None:
    """Raises ValueError for bits that GSE does not have, and for a base that is not legal with them."""
    if not 2 <= bits <= 8:
        raise ValueError(f"GSE has 2 to 8 bits, not {bits}")
    lowest, highest = step_range(bits)
    if not lowest <= exponent_base <= highest:
        raise ValueError(f"exponent_base {exponent_base} is out of {lowest} to {highest}")


def gse_bits(rows: int, row_size: int, bits: int, group_size: int) -> int:
    """Bits that the streams of a tensor take: b * R * K + 5 * R * ceil(K / G)."""
    return rows * (bits * row_size + EXPONENT_BITS * -(-row_size // group_size))


def _groups(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """[R, n, G], the last group of a row filled up with zeros, which change neither exponents nor errors."""
    size = min(size, max(rows.shape[1], 1))  # a group longer than the row is the row
    count = -(-rows.shape[1] // size)
    padded = np.pad(rows, ((0, 0), (0, count * size - rows.shape[1])))
    return padded.reshape(rows.shape[0], count, size)


def _spread(values: Float, scales: Float, size: int) -> Float:
    """values [R, K] times scales [R, n], one scale a group."""
    return np.asarray(values * each_value(scales, size, values.shape[1]), np.float32)


def each_value(per_group: npt.NDArray[Any], size: int, row_size: int) -> npt.NDArray[Any]:
    """What a group has, once for each of its values: [R, n] -> [R, K]."""
    return np.asarray(np.repeat(per_group, min(size, max(row_size, 1)), axis=1)[:, :row_size])


def _slices(rows: int, row_size: int) -> Iterator[slice]:
    step = max(_CHUNK // max(row_size, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _mantissas(
    grouped: npt.NDArray[np.float64], k: npt.NDArray[Any], bits: int, encoder: Encoder
) -> npt.NDArray[np.float64]:
    """Mantissas as float64 of groups [..., G] at steps 2^k [...]."""
    scaled = np.ldexp(grouped, -k[..., np.newaxis])
    top = (1 << (bits - 1)) - 1
    if encoder == "paper":
        scaled, low = np.trunc(scaled), -top
    else:
        scaled, low = np.rint(scaled), -top - 1
    clipped: npt.NDArray[np.float64] = np.clip(scaled, low, top)
    return clipped


def _squared_error(
    grouped: npt.NDArray[np.float64], k: npt.NDArray[Any], bits: int
) -> npt.NDArray[np.float64]:
    real = np.ldexp(_mantissas(grouped, k, bits, "nearest"), k[..., np.newaxis])
    error: npt.NDArray[np.float64] = np.square(real - grouped).sum(axis=-1)
    return error


def _steps(grouped: npt.NDArray[np.float64], bits: int, encoder: Encoder) -> npt.NDArray[np.int32]:
    """The wished k of each group [..., G]; the lowest possible number where a group is all zero."""
    magnitude = np.abs(grouped).max(axis=-1)
    k: npt.NDArray[np.int32] = (np.frexp(magnitude)[1] - (bits - 1)).astype(np.int32)
    if encoder == "nearest":
        # Values are scaled near 1 first: squares of denormals would vanish.
        unit = np.ldexp(grouped, -k[..., np.newaxis])
        zero = np.zeros_like(k)
        # Of equals the finer: otherwise what was encoded with the coarser would move the tensor's window.
        finer = _squared_error(unit, zero - 1, bits) <= _squared_error(unit, zero, bits)
        k = k - finer.astype(np.int32)
    return np.where(magnitude > 0, k, np.int32(-(2**30))).astype(np.int32)


def encode_gse(values: npt.ArrayLike, bits: int, group_size: int, encoder: Encoder = "nearest") -> GSETensor:
    """Encode rows, float [R, K], as GSE.

    Raises ValueError for NaN or Inf, bits out of 2 to 8, or a group size below 1.
    """
    rows = np.asarray(values, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"rows of weights are a matrix, not an array of {rows.ndim} axes")
    if not 2 <= bits <= 8:
        raise ValueError(f"GSE has 2 to 8 bits, not {bits}")
    if group_size < 1:
        raise ValueError(f"a group has at least 1 value, not {group_size}")
    if encoder not in ("nearest", "paper"):
        raise ValueError(f"the encoder is nearest or paper, not {encoder}")
    if not np.isfinite(rows).all():
        raise ValueError("holds NaN or Inf")
    count, row_size = rows.shape
    wished = np.empty((count, -(-row_size // group_size)), np.int32)
    for part in _slices(count, row_size):
        wished[part] = _steps(_groups(rows[part].astype(np.float64), group_size), bits, encoder)
    lowest, highest = step_range(bits)
    used = wished[wished > -(2**29)]
    top = int(min(used.max(initial=-(2**29)), highest + _WINDOW)) if used.size else 0
    base = max(top - _WINDOW, lowest)
    k = np.clip(wished, base, base + _WINDOW).astype(np.int32)
    mantissas = np.empty((count, row_size), np.int8)
    loss, raised = 0.0, 0
    moved = (k != wished) & (wished > -(2**29))
    for part in _slices(count, row_size):
        grouped = _groups(rows[part].astype(np.float64), group_size)
        found = _mantissas(grouped, k[part], bits, encoder)
        mantissas[part] = found.reshape(len(grouped), -1)[:, :row_size].astype(np.int8)
        if moved[part].any():
            own = wished[part][..., np.newaxis]
            error = np.abs(np.ldexp(found, k[part][..., np.newaxis]) - grouped) - np.ldexp(0.5, own)
            worse = error[moved[part]].max(axis=-1)
            loss = max(loss, float(worse.max()))
            raised += int((worse > 0).sum())
    codes = (k - base).astype(np.uint8)
    codes[wished <= -(2**29)] = 0
    return GSETensor(mantissas, codes, base, bits, group_size, raised, max(loss, 0.0))


def quantize_groups(
    values: Float, bits: int, group_size: int, axis: int, encoder: Encoder = "nearest"
) -> Float:
    """Values as GSE would hold them when groups of `group_size` along `axis` share an exponent at run time.

    The exponent is the smallest e with max|x| < 2^e (no search, as it is found anew for every input), with k
    kept in normal float32; mantissas are rounded as the encoder does. The last group of an axis may be short.
    """
    moved = np.moveaxis(np.asarray(values, np.float32), axis, -1)
    grouped = _groups(moved.reshape(-1, moved.shape[-1]).astype(np.float64), group_size)
    magnitude = np.abs(grouped).max(axis=-1)
    k = np.clip(np.frexp(magnitude)[1] - (bits - 1), -126, 128 - bits)
    k = np.where(magnitude > 0, k, 0)
    real = np.ldexp(_mantissas(grouped, k, bits, encoder), k[..., np.newaxis]).astype(np.float32)
    flat = real.reshape(len(grouped), -1)[:, : moved.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(moved.shape), -1, axis))


def row_geometry(shape: Sequence[int], group_size: int) -> tuple[int, int, int]:
    """(R, K, n) of a weight. Raises ValueError for what is no weight."""
    if not shape or min(shape) < 0 or group_size < 1:
        raise ValueError(f"shape {tuple(shape)} in groups of {group_size} is no weight")
    row_size = math.prod(shape[1:])
    return shape[0], row_size, -(-row_size // group_size)


def decode_gse(
    packed: npt.NDArray[np.uint8],
    exponents: npt.NDArray[np.uint8],
    bits: int,
    group_size: int,
    exponent_base: int,
    shape: Sequence[int],
) -> Float:
    """What the op GSEDequantizeLinear gives: float32 of `shape`, from its two bit streams.

    Raises ValueError for streams that are too short and for numbers out of range.
    """
    rows, row_size, groups = row_geometry(shape, group_size)
    check_exponent_base(exponent_base, bits)
    mantissas = unpack_bits(packed, bits, rows * row_size, signed=True).reshape(rows, row_size)
    codes = unpack_bits(exponents, EXPONENT_BITS, rows * groups, signed=False).reshape(rows, groups)
    return GSETensor(mantissas, codes, exponent_base, bits, group_size).decoded().reshape(shape)


def decode_affine(
    packed: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16] | npt.NDArray[np.float32],
    zero_point: npt.NDArray[np.int8],
    bits: int,
    group_size: int,
    shape: Sequence[int],
) -> Float:
    """What the op PackedDequantizeLinear gives: (m - zero_point) * scale in float32, one pair a group [R, n].

    Raises ValueError for a stream that is too short and for numbers out of range.
    """
    rows, row_size, groups = row_geometry(shape, group_size)
    if not 2 <= bits <= 8:
        raise ValueError(f"packed integers have 2 to 8 bits, not {bits}")
    if scale.size < rows * groups or zero_point.size < rows * groups:
        raise ValueError(f"{rows * groups} groups need as many scales and zero points")
    mantissas = unpack_bits(packed, bits, rows * row_size, signed=True).reshape(rows, row_size)
    scales, zeros = (
        array.reshape(-1)[: rows * groups].reshape(rows, groups).astype(np.float32)
        for array in (scale, zero_point)
    )
    if not np.isfinite(scales).all():
        raise ValueError("scale must be finite")
    shifted = mantissas.astype(np.float32) - each_value(zeros, group_size, row_size)
    return _spread(shifted.astype(np.float32), scales, group_size).reshape(shape)
