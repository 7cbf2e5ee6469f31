"""Bit streams: round trips, the layout that ONNX itself uses, and refusals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from runtime_ops.bitpack import pack_bits, packed_bytes, unpack_bits


@given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 2**16))
def test_round_trip(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (-(-count // 8), bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count, signed=False), codes)
    half = 1 << (bits - 1)
    signed = unpack_bits(packed, bits, count, signed=True)
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed, np.where(codes >= half, codes.astype(int) - 2 * half, codes))


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT2"), (4, "INT4"), (8, "INT8")])
def test_even_widths_are_onnx_types(bits: int, kind: str) -> None:
    codes = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), 24)
    raw = pack_bits(codes, bits).tobytes()
    tensor = onnx.TensorProto(data_type=getattr(onnx.TensorProto, kind), dims=[24], raw_data=raw)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int64), codes)


def test_bit_order_by_hand() -> None:
    # 5, 1, 7, 0, 2, 6, 3, 4 in 3 bits each, the first one lowest: 0b100_011_110_010_000_111_001_101.
    packed = pack_bits(np.asarray([5, 1, 7, 0, 2, 6, 3, 4]), 3)
    assert int.from_bytes(packed.tobytes(), "little") == 0b100_011_110_010_000_111_001_101


def test_refusals() -> None:
    with pytest.raises(ValueError, match="need 6 bytes, not 5"):
        unpack_bits(np.zeros(5, np.uint8), 5, 9, signed=False)
    with pytest.raises(ValueError, match="not of 9"):
        pack_bits(np.zeros(3, np.uint8), 9)
    assert packed_bytes(9, 5) == 6
