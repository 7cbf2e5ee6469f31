"""Trellis-coded quantization (TCQ): b bits a weight, and nearly what theory allows at that rate.

TCQ is from Marcellin and Fischer (IEEE Trans. Comm. 38, 1990); a trellis whose decoder is a sliding window of
bits is from QTIP (arXiv:2406.11235). A weight of C output channels and K columns is one chain of T = C * K
values, column after column. The chain is a stream of bits, the most significant bit of each byte first; value
t is

    levels[w_t] * scale[channel],    w_t: the WINDOW bits of the stream from bit b * t on,

so that each step brings in b new bits and neighbouring values share the others. A decoder looks each
window up and needs no state; an encoder finds the best path with the Viterbi algorithm. `levels`, int8, are
the quantiles of a normal distribution, laid out so that the 2^b steps out of any state land in as many parts
of it, for every b. On normal numbers that is 11.5, 17.4, 23.2 and 29.0 dB at 2 to 5 bits, where the best
scalar quantizer has 9.3, 14.6, 20.2 and 26.0 and the bound of any has 12.0, 18.1, 24.1 and 30.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from runtime_ops.kernels import trellis_native
from runtime_ops.library import native_available

__all__ = [
    "TCQ_BITS",
    "WINDOW",
    "chain_bytes",
    "decode_tcq",
    "decode_tcq_codes",
    "level_spread",
    "pack_windows",
    "tcq_levels",
    "trellis_path",
    "unpack_windows",
]

Float = npt.NDArray[np.float32]
Windows = npt.NDArray[np.uint16]
TCQ_BITS = (2, 3, 4, 5)
WINDOW = 12
_STATES = 1 << WINDOW
# A path is kept for so many values at a time; what follows starts from where it ended.
_SEGMENT = 4096
# More than any sum of costs, and no infinity: the least cost is taken off each step.
_UNREACHABLE = np.float32(1e30)
_MULTIPLIER = 2654435761  # Knuth's: 2^32 over the golden ratio


def _scrambled(count: int, salt: int) -> npt.NDArray[np.int64]:
    """Numbers below 2^32 that look random, the same on every machine."""
    numbers = np.arange(count, dtype=np.uint64) * np.uint64(2) + np.uint64(2 * salt + 1)
    for _ in range(3):
        numbers = (numbers * np.uint64(_MULTIPLIER)) & np.uint64(0xFFFFFFFF)
        numbers ^= numbers >> np.uint64(15)
    return numbers.astype(np.int64)


@functools.cache
def tcq_levels() -> npt.NDArray[np.int8]:
    """The level of each window, int8 [2^WINDOW], read-only.

    The rank of window w among the quantiles: its two highest bits are the two lowest of w, each further one
    the next bit of w, all flipped at random by what stands above them in w. So the windows
    w = p 2^b + (0 ... 2^b - 1) fall one each into the 2^b parts of equal probability.
    """
    window = np.arange(_STATES)

    def flips(above: npt.NDArray[np.int64], salt: int) -> npt.NDArray[np.int64]:
        return (_scrambled(_STATES, salt) >> 9)[above]

    top = max(TCQ_BITS)
    rank = ((window & 3) ^ (flips(window >> 2, 1) & 3)) << (WINDOW - 2)
    for bit in range(2, top):
        rank |= ((window >> bit & 1) ^ (flips(window >> (bit + 1), bit) & 1)) << (WINDOW - 1 - bit)
    rank |= np.argsort(_scrambled(_STATES >> top, top), kind="stable")[window >> top]
    quantiles = ndtri((rank + 0.5) / _STATES)
    levels: npt.NDArray[np.int8] = np.rint(quantiles * (127 / quantiles.max())).astype(np.int8)
    levels.flags.writeable = False
    return levels


@functools.cache
def _single_levels() -> Float:
    """The levels in float32, as a search reads them: it is called for every column of a weight."""
    return tcq_levels().astype(np.float32)


@functools.cache
def level_spread() -> float:
    """Root of the mean square of the levels: a row of weights with that spread has a scale of 1."""
    return float(np.sqrt(np.mean(np.square(tcq_levels().astype(np.float64)))))


def chain_bytes(count: int, bits: int) -> int:
    """Bytes of a chain of `count` values: whole units of eight values, and one unit for the last windows."""
    return (-(-count // 8) + 1) * bits


def pack_windows(windows: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """The stream of a chain's windows [T], as uint8 [T / 8 + 1, bits]. Raises ValueError where they do not
    overlap as a stream's windows must."""
    _check_bits(bits)
    chain = np.asarray(windows, np.uint16).reshape(-1)
    keep = _STATES // (1 << bits) - 1
    if ((chain[:-1] & keep) != chain[1:] >> bits).any():
        raise ValueError("the windows are those of no stream: neighbours must share all but the new bits")
    if not chain.size:
        return np.zeros((1, bits), np.uint8)
    # The highest `bits` bits of each window, and what remains of the last one.
    shifts = np.arange(WINDOW - 1, -1, -1, dtype=np.uint16)
    spread = (chain[:, np.newaxis] >> shifts[:bits] & 1).astype(np.uint8)
    last = (chain[-1] >> shifts[bits:] & 1).astype(np.uint8)
    stream = np.zeros(chain_bytes(chain.size, bits), np.uint8)
    packed = np.packbits(np.concatenate([spread.reshape(-1), last]))
    stream[: packed.size] = packed
    return stream.reshape(-1, bits)


def unpack_windows(packed: npt.NDArray[np.uint8], bits: int, count: int) -> Windows:
    """The first `count` windows of a stream. Raises ValueError where it is too short."""
    _check_bits(bits)
    stream = np.asarray(packed, np.uint8).reshape(-1)
    units = -(-count // 8)
    if stream.size < chain_bytes(count, bits):
        raise ValueError(
            f"{count} values of {bits} bits need {chain_bytes(count, bits)} bytes, not {stream.size}"
        )
    held = np.zeros((units + 2) * bits, np.uint32)
    held[: (units + 1) * bits] = stream[: (units + 1) * bits]
    found = np.empty((units, 8), np.uint16)
    for value in range(8):
        first, shift = divmod(value * bits, 8)
        window = sum(held[first + i : first + i + units * bits : bits] << (16 - 8 * i) for i in range(3))
        found[:, value] = (window >> np.uint32(24 - WINDOW - shift)) & np.uint32(_STATES - 1)
    return found.reshape(-1)[:count]


def decode_tcq(
    packed: npt.NDArray[np.uint8],
    scale: npt.NDArray[Any],
    levels: npt.NDArray[Any],
    bits: int,
    shape: Sequence[int],
) -> Float:
    """The weight, float32 of `shape`, output channels first; scale: [C]. Raises ValueError for bad input."""
    if np.size(scale) != _sizes(shape)[0]:
        raise ValueError(f"scale must hold {_sizes(shape)[0]} numbers")
    columns = _columns(packed, np.asarray(levels, np.float32), bits, shape)
    columns *= np.asarray(scale, np.float32).reshape(-1)
    return np.ascontiguousarray(columns.T).reshape(_sizes(shape))


def decode_tcq_codes(
    packed: npt.NDArray[np.uint8], levels: npt.NDArray[np.int8], bits: int, shape: Sequence[int]
) -> npt.NDArray[np.int8]:
    """decode_tcq without the scale: the levels that the weight is made of, int8 of `shape`.

    Raises ValueError for bad input.
    """
    columns = _columns(packed, np.asarray(levels, np.int8), bits, shape)
    return np.ascontiguousarray(columns.T).reshape(_sizes(shape))


def _sizes(shape: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in shape]
    if not sizes or min(sizes) < 1:
        raise ValueError("shape must have at least one axis and only positive sizes")
    return sizes


def _columns(
    packed: npt.NDArray[np.uint8], levels: npt.NDArray[Any], bits: int, shape: Sequence[int]
) -> npt.NDArray[Any]:
    """The level of each value of the chain, [K, C]: a column after the other."""
    sizes = _sizes(shape)
    if levels.size != _STATES:
        raise ValueError(f"levels must hold {_STATES} numbers, not {levels.size}")
    windows = unpack_windows(packed, bits, math.prod(sizes))
    return np.asarray(levels.reshape(-1)[windows].reshape(-1, sizes[0]))


def _check_bits(bits: int) -> None:
    if bits not in TCQ_BITS:
        raise ValueError(f"a trellis has {TCQ_BITS[0]} to {TCQ_BITS[-1]} bits, not {bits}")


def trellis_path(
    values: npt.NDArray[Any],
    weights: npt.NDArray[Any],
    bits: int,
    start: int | None = None,
    end: int | None = None,
) -> Windows:
    """The windows [T] of least sum of weights * (values - levels)^2, values in units of the levels.

    start: the window before the first, None for a stream that begins here. end: a window that stands at the
    end now, whose successors must stay possible; where both are given they must be of one stream.
    Viterbi's algorithm, in the C++ library where it is there, else in numpy: both give the same windows.
    """
    _check_bits(bits)
    wanted = np.ascontiguousarray(values, np.float32)
    # The largest weight is 1: sums stay far from the limits of float32.
    largest = float(np.max(weights, initial=0.0))
    costs = np.asarray(np.asarray(weights, np.float64) / (largest or 1.0), np.float32)
    find = trellis_native if native_available() else _viterbi
    path = np.empty(wanted.size, np.uint16)
    for first in range(0, wanted.size, _SEGMENT):
        part = slice(first, min(first + _SEGMENT, wanted.size))
        closed = end if part.stop == wanted.size else None
        path[part] = find(wanted[part], costs[part], _single_levels(), bits, start, closed)
        start = int(path[part.stop - 1])
    return path


def _viterbi(
    values: Float, weights: Float, levels: Float, bits: int, start: int | None, end: int | None
) -> Windows:
    """The reference of `trellis_native`, in the same order of operations."""
    prefixes, count = _STATES >> bits, values.size
    # least[t, p]: the smallest cost of what lies before value t, if its window is p 2^bits + anything.
    least = np.empty((count, prefixes), np.float32)
    reached = np.zeros(prefixes, np.float32)
    if start is not None:
        reached[:] = _UNREACHABLE
        reached[start & (prefixes - 1)] = 0
    cost = np.empty(0, np.float32)
    for t in range(count):
        if t:
            reached = cost.reshape(-1, prefixes).min(0)
        least[t] = reached - reached.min()
        error = values[t] - levels
        cost = np.repeat(least[t], 1 << bits) + error * error * weights[t]
    if end is not None:
        cost = np.where(np.arange(_STATES) % prefixes == (end & (prefixes - 1)), cost, np.inf)
    path = np.empty(count, np.uint16)
    window = int(cost.argmin())
    steps = np.arange(1 << bits) * prefixes
    for t in range(count - 1, -1, -1):
        path[t] = window
        if t:
            before = steps + (window >> bits)
            error = values[t - 1] - levels[before]
            cost_before = least[t - 1, before >> bits] + error * error * weights[t - 1]
            window = int(before[cost_before.argmin()])
    return path
