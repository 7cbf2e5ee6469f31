"""The operators of the domain `ai.onnxq` as ONNX functions: standard operators only, so that a file which
holds them runs in any runtime, with no library of ours.

GSEDequantizeLinear(packed, exponents, ...) and PackedDequantizeLinear(packed, scale, zero_point, ...) are
what runtime_ops/gse.py calls `decode_gse` and `decode_affine`. A kernel needs the inputs named here and the
attributes; the inputs behind them are tables that only the function body reads. They are inputs, and not
constants of the body, because ONNX Runtime copies and folds a body once per node: each node of a body costs
about 40 microseconds per weight when a session is created, and shared initializers cost nothing.

How the body takes values of b bits out of bytes without integer division (which is slow) or bit operations
(which ONNX has for unsigned types only): eight values fill b bytes; value i begins s bits into byte j and may
reach into byte j + 1. T = (B_j + 256 B_{j+1}) / 2^s is one column of a matrix product, F = floor(T) has the
value in its low b bits, H = floor(F / 2^b + 1/2) is what stands above them, the sign carried, and
m = F - 2^b H. No number has more than 24 significant bits, so float32 is exact. Exponent codes are unsigned:
floor(T) mod 32.

These two want whole units of eight values and eight codes: `padded_rows` gives the rows a weight must have.

TCQDequantizeLinear(packed, scale, levels, ...) is `decode_tcq` of runtime_ops/trellis.py. Its windows of 12
bits reach into up to three bytes, also of the next unit: T = (2^16 B_j + 2^8 B_{j+1} + B_{j+2}) / 2^(12 - s)
is the sum of two matrix products, of the units and of their successors; floor(T) mod 2^12 is the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import parser

from runtime_ops.gse import EXPONENT_BITS
from runtime_ops.trellis import WINDOW, tcq_levels

__all__ = [
    "DOMAIN",
    "GSE_OP",
    "LEAST_OPSET",
    "PACKED_OP",
    "SIMULATED_OP",
    "TCQ_OP",
    "affine_tables",
    "function",
    "geometry_tables",
    "gse_tables",
    "padded_rows",
    "register_function",
    "registered_function",
    "tcq_tables",
]

Array = npt.NDArray[Any]
DOMAIN = "ai.onnxq"
GSE_OP = "GSEDequantizeLinear"
PACKED_OP = "PackedDequantizeLinear"
TCQ_OP = "TCQDequantizeLinear"
SIMULATED_OP = "GSEQuantizeDequantize"
LEAST_OPSET = 14

_HEAD = '<domain: "ai.onnxq", opset_import: ["" : {opset}]>\n'

_MANTISSAS = """
    bytes = Cast <to = 1> (packed)
    windows = Gemm (bytes, unpack, half)
    floors = Floor (windows)
    units = MatMul (floors, sign)
    mantissas = Reshape (units, granules)
"""

_GSE = (
    _HEAD
    + """
GSEDequantizeLinear <bits, group_size, exponent_base, shape>
    (packed, exponents, scales, groups, granules, index, dims, unpack, half, sign, unpack5, modulus) => (y)
{"""
    + _MANTISSAS
    + """
    exponent_bytes = Cast <to = 1> (exponents)
    exponent_windows = MatMul (exponent_bytes, unpack5)
    exponent_floors = Cast <to = 6> (exponent_windows)
    codes = Mod (exponent_floors, modulus)
    steps = Gather (scales, codes)
    grouped = Reshape (steps, groups)
    spread = Gather <axis = 1> (grouped, index)
    product = Mul (mantissas, spread)
    y = Reshape (product, dims)
}"""
)

_PACKED = (
    _HEAD
    + """
PackedDequantizeLinear <bits, group_size, shape>
    (packed, scale, zero_point, granules, index, dims, unpack, half, sign) => (y)
{"""
    + _MANTISSAS
    + """
    zeros = Cast <to = 1> (zero_point)
    zeros_spread = Gather <axis = 1> (zeros, index)
    shifted = Sub (mantissas, zeros_spread)
    scales = Cast <to = 1> (scale)
    scales_spread = Gather <axis = 1> (scales, index)
    product = Mul (shifted, scales_spread)
    y = Reshape (product, dims)
}"""
)

_TCQ = (
    _HEAD
    + """
TCQDequantizeLinear <bits, shape>
    (packed, scale, levels, zero, one, last, far, count, columns, dims, unpack, unpack_next, modulus) => (y)
{
    bytes = Cast <to = 1> (packed)
    units = Slice (bytes, zero, last)
    following = Slice (bytes, one, far)
    own_part = MatMul (units, unpack)
    next_part = MatMul (following, unpack_next)
    windows = Add (own_part, next_part)
    floors = Cast <to = 6> (windows)
    index = Mod (floors, modulus)
    table = Cast <to = 1> (levels)
    looked_up = Gather (table, index)
    chain = Reshape (looked_up, last)
    cut = Slice (chain, zero, count)
    by_column = Reshape (cut, columns)
    scales = Cast <to = 1> (scale)
    scaled = Mul (by_column, scales)
    rows = Transpose <perm = [1, 0]> (scaled)
    y = Reshape (rows, dims)
}"""
)

# p may miss floor(log2(magnitude)) by one, since Log is no exact function; two exact comparisons mend that.
_SIMULATED = (
    _HEAD
    + """
GSEQuantizeDequantize <bits, group_size, rows, truncate> (x) => (y)
{{
    powers = Constant <value = float[256] {powers}> ()
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    two = Constant <value = int64[1] {{2}}> ()
    any = Constant <value = int64[1] {{-1}}> ()
    bits64 = Constant <value_int: int = @bits> ()
    size64 = Constant <value_int: int = @group_size> ()
    rows64 = Constant <value_ints: ints = @rows> ()
    size = Reshape (size64, one)
    bits1 = Reshape (bits64, one)
    flat = Reshape (x, rows64)
    flat_shape = Shape (flat)
    channels = Slice (flat_shape, one, two)
    less = Sub (size, one)
    more = Add (channels, less)
    number = Div (more, size)
    total = Mul (number, size)
    missing = Sub (total, channels)
    pads = Concat <axis = 0> (zero, zero, zero, zero, missing, zero)
    padded = Pad (flat, pads)
    shape4 = Concat <axis = 0> (zero, number, size, any)
    grouped = Reshape (padded, shape4)
    magnitudes = Abs (grouped)
    {reduce}
    tiny = Constant <value = float {{1.1754943508222875e-38}}> ()
    safe = Max (magnitude, tiny)
    natural = Log (safe)
    per_octave = Constant <value = float {{1.4426950408889634}}> ()
    octaves = Mul (natural, per_octave)
    guess_float = Floor (octaves)
    least = Constant <value = float {{-126}}> ()
    most = Constant <value = float {{126}}> ()
    guess_clipped = Clip (guess_float, least, most)
    guess = Cast <to = 7> (guess_clipped)
    guess_next = Add (guess, one)
    power = Gather (powers, guess)
    power_next = Gather (powers, guess_next)
    under = Less (safe, power)
    over = GreaterOrEqual (safe, power_next)
    under64 = Cast <to = 7> (under)
    over64 = Cast <to = 7> (over)
    lowered = Sub (guess, under64)
    octave = Add (lowered, over64)
    shift = Sub (two, bits1)
    wished = Add (octave, shift)
    lowest = Constant <value = int64[1] {{-126}}> ()
    top128 = Constant <value = int64[1] {{128}}> ()
    highest = Sub (top128, bits1)
    raised = Max (wished, lowest)
    exponent = Min (raised, highest)
    step = Gather (powers, exponent)
    scaled = Div (grouped, step)
    bits_less = Sub (bits1, one)
    high_edge = Gather (powers, bits_less)
    low_edge = Neg (high_edge)
    unit = Constant <value = float {{1}}> ()
    high = Sub (high_edge, unit)
    truncate64 = Constant <value_int: int = @truncate> ()
    truncate_bool = Cast <to = 9> (truncate64)
    rounded = Round (scaled)
    size_of = Abs (scaled)
    floored = Floor (size_of)
    signs = Sign (scaled)
    truncated = Mul (floored, signs)
    mantissas_raw = Where (truncate_bool, truncated, rounded)
    low_paper = Neg (high)
    low = Where (truncate_bool, low_paper, low_edge)
    mantissas_low = Max (mantissas_raw, low)
    mantissas = Min (mantissas_low, high)
    real = Mul (mantissas, step)
    shape3 = Concat <axis = 0> (zero, total, any)
    joined = Reshape (real, shape3)
    cut = Slice (joined, zero, channels, one)
    own = Shape (x)
    y = Reshape (cut, own)
}}"""
)


def _powers() -> str:
    """2^i at index i, negative indices counted from the end; 0 where float32 has no normal number."""
    table = [2.0**i if i < 128 else 2.0 ** (i - 256) if i >= 130 else 0.0 for i in range(256)]
    return "{" + ", ".join(repr(float(np.float32(value))) for value in table) + "}"


# Operator -> maker of its function, beside those of this file.
_MAKERS: dict[str, Callable[[int], onnx.FunctionProto]] = {}


def register_function(op: str, maker: Callable[[int], onnx.FunctionProto]) -> None:
    """Let models call `op`: `maker` gives its function for an opset."""
    _MAKERS[op] = maker


def registered_function(op: str, opset: int) -> onnx.FunctionProto:
    """The function of any operator of the domain. Raises ValueError for an opset that cannot hold it."""
    return _MAKERS[op](opset) if op in _MAKERS else function(op, opset)


def function(op: str, opset: int) -> onnx.FunctionProto:
    """The function of that operator for a model at `opset`, which must be LEAST_OPSET or newer."""
    if opset < LEAST_OPSET:
        raise ValueError(f"the functions of {DOMAIN} need opset {LEAST_OPSET}, not {opset}")
    if op == SIMULATED_OP:
        if opset < 18:
            reduce = "magnitude = ReduceMax <axes = [2], keepdims = 1> (magnitudes)"
        else:
            reduce = "magnitude = ReduceMax <keepdims = 1> (magnitudes, two)"
        text = _SIMULATED.format(opset=opset, powers=_powers(), reduce=reduce)
    else:
        text = {GSE_OP: _GSE, PACKED_OP: _PACKED, TCQ_OP: _TCQ}[op].replace("{opset}", str(opset))
    return parser.parse_function(text)


def _windows(bits: int) -> npt.NDArray[np.float32]:
    """[bits, 8]: bytes of a unit -> window of each value, as the module's note has it."""
    table = np.zeros((bits, 8), np.float32)
    for value in range(8):
        first, shift = divmod(value * bits, 8)
        for byte in range(first, min(first + 2, bits)):
            if 8 * (byte - first) < shift + bits:
                table[byte, value] = 2.0 ** (8 * (byte - first) - shift)
    return table


def _mantissa_tables(bits: int) -> dict[str, Array]:
    windows = _windows(bits)
    half = np.zeros(16, np.float32)
    half[8:] = 0.5
    unpack = np.concatenate([windows, windows * np.float32(2.0**-bits)], axis=1)
    sign = np.concatenate([np.eye(8), -(2.0**bits) * np.eye(8)]).astype(np.float32)
    return {"unpack": unpack, "half": half, "sign": sign}


def padded_rows(rows: int, row_size: int, group_size: int) -> int:
    """The least number of rows from `rows` on whose values and exponent codes fill whole units of eight."""
    groups = -(-row_size // group_size)
    step = 8 // math.gcd(8, math.gcd(row_size, groups))
    return -(-rows // step) * step


def geometry_tables(shape: Sequence[int], group_size: int) -> dict[str, Array]:
    """Where each granule (the largest run of values that groups and rows are multiples of) has its group.

    The number of rows stands as -1, so that weights which differ in that alone share their tables.
    """
    row_size = math.prod(shape[1:])
    granule = math.gcd(row_size, group_size)
    number = row_size // granule
    index = np.arange(number, dtype=np.int64) * granule // group_size
    return {
        "granules": np.asarray([-1, number, granule], np.int64),
        "index": index[:, np.newaxis],
        "dims": np.asarray([-1, *shape[1:]], np.int64),
    }


def gse_tables(bits: int, group_size: int, exponent_base: int, shape: Sequence[int]) -> dict[str, Array]:
    """Input name -> array, of the inputs of GSEDequantizeLinear behind `packed` and `exponents`, in order."""
    geometry = geometry_tables(shape, group_size)
    groups = -(-math.prod(shape[1:]) // group_size)
    codes = np.arange(1 << EXPONENT_BITS, dtype=np.int32)
    return {
        "scales": np.ldexp(np.float32(1), codes + exponent_base).astype(np.float32),
        "groups": np.asarray([-1, groups], np.int64),
        **geometry,
        **_mantissa_tables(bits),
        "unpack5": _windows(EXPONENT_BITS),
        "modulus": np.asarray(1 << EXPONENT_BITS, np.int32),
    }


def affine_tables(bits: int, group_size: int, shape: Sequence[int]) -> Mapping[str, Array]:
    """Input name -> array, of the inputs of PackedDequantizeLinear behind `zero_point`, in order."""
    return {**geometry_tables(shape, group_size), **_mantissa_tables(bits)}


def _trellis_windows(bits: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """[bits, 8] each: bytes of a unit and of the next one -> T of each value, as the module's note has it."""
    table = np.zeros((2 * bits, 8), np.float32)
    for value in range(8):
        first, shift = divmod(value * bits, 8)
        for byte in range(3):
            table[first + byte, value] = 2.0 ** (16 - 8 * byte - (24 - WINDOW - shift))
    return table[:bits], table[bits:]


def tcq_tables(bits: int, shape: Sequence[int]) -> dict[str, Array]:
    """Input name -> array, of the inputs of TCQDequantizeLinear behind `scale`, in order."""
    unpack, unpack_next = _trellis_windows(bits)
    return {
        "levels": tcq_levels(),
        "zero": np.asarray([0], np.int64),
        "one": np.asarray([1], np.int64),
        "last": np.asarray([-1], np.int64),
        "far": np.asarray([np.iinfo(np.int64).max], np.int64),
        "count": np.asarray([math.prod(shape)], np.int64),
        "columns": np.asarray([-1, shape[0]], np.int64),
        "dims": np.asarray([-1, *shape[1:]], np.int64),
        "unpack": unpack,
        "unpack_next": unpack_next,
        "modulus": np.asarray(1 << WINDOW, np.int32),
    }
