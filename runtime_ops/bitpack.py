"""Bit streams: codes of 2 to 8 bits, packed without gaps, little-endian.

Code i of a stream occupies its bits [i * bits, (i + 1) * bits); bit j of it is bit j % 8 of byte j // 8.
For 2, 4 and 8 bits this is byte for byte how ONNX stores INT2, INT4 and INT8. Eight codes fill `bits` bytes
exactly, which is the unit that everything here works in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack_bits", "packed_bytes", "unpack_bits"]

Bytes = npt.NDArray[np.uint8]
# Units that are packed at a time: what lies in between stays in the processor's cache.
_CHUNK = 1 << 13


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a stream of `count` codes, without padding to whole units."""
    return -(-count * bits // 8)


def _shifts(bits: int) -> npt.NDArray[np.uint64]:
    if not 1 <= bits <= 8:
        raise ValueError(f"codes of 1 to 8 bits can be packed, not of {bits}")
    return np.arange(8, dtype=np.uint64) * np.uint64(bits)


def pack_bits(codes: npt.NDArray[Any], bits: int) -> Bytes:
    """Pack integer codes of any shape (row-major; the low `bits` bits count) into uint8 [ceil(N / 8), bits].

    The last unit is filled up with zero codes. Raises ValueError for a width out of 1 to 8.
    """
    shifts = _shifts(bits)
    flat = np.asarray(codes).reshape(-1).astype(np.uint8)
    packed = np.empty((-(-flat.size // 8), bits), np.uint8)
    for start in range(0, len(packed), _CHUNK):
        part = flat[8 * start : 8 * (start + _CHUNK)]
        units = np.zeros((-(-part.size // 8), 8), np.uint64)
        units.reshape(-1)[: part.size] = part & np.uint8((1 << bits) - 1)
        words = np.bitwise_or.reduce(units << shifts, axis=1).astype("<u8")
        packed[start : start + _CHUNK] = words.view(np.uint8).reshape(-1, 8)[:, :bits]
    return packed


def unpack_bits(packed: Bytes, bits: int, count: int, signed: bool) -> npt.NDArray[Any]:
    """The first `count` codes of a stream held in bytes of any shape: int8 where `signed`, else uint8.

    Raises ValueError where the stream is too short, or the width is out of 1 to 8.
    """
    shifts = _shifts(bits)
    stream = np.asarray(packed, np.uint8).reshape(-1)
    if stream.size < packed_bytes(count, bits):
        needed = packed_bytes(count, bits)
        raise ValueError(f"{count} codes of {bits} bits need {needed} bytes, not {stream.size}")
    number = -(-count // 8)
    held = np.zeros(number * bits, np.uint8)
    used = stream[: held.size]
    held[: used.size] = used
    units = np.zeros((number, 8), np.uint8)
    units[:, :bits] = held.reshape(number, bits)
    words = units.view("<u8").astype(np.uint64)
    codes = ((words >> shifts) & np.uint64((1 << bits) - 1)).astype(np.uint8).reshape(-1)[:count]
    if not signed:
        return codes
    # Up against the top of the byte and back: the arithmetic shift copies the sign.
    return (codes << np.uint8(8 - bits)).view(np.int8) >> np.int8(8 - bits)
