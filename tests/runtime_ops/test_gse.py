"""GSE's reference: what encoding promises, for any weights, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_ops.bitpack import pack_bits
from runtime_ops.gse import (
    EXPONENT_BITS,
    Encoder,
    decode_affine,
    decode_gse,
    encode_gse,
    gse_bits,
    quantize_groups,
    step_range,
)

Float = npt.NDArray[np.float32]
BITS = st.integers(2, 8)
SIZES = st.sampled_from([1, 3, 8, 16, 32, 64])
ENCODERS: st.SearchStrategy[Encoder] = st.sampled_from(["nearest", "paper"])


@st.composite
def weights(draw: st.DrawFn, least: int = -20, most: int = 20) -> Float:
    """[R, K] normal numbers, each row on a power of two of its own; some groups are all zero."""
    rows, row_size = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    scale = 2.0 ** rng.integers(least, most + 1, (rows, 1))
    values = (rng.standard_normal((rows, row_size)) * scale).astype(np.float32)
    if draw(st.booleans()):
        values[:, : draw(st.integers(0, row_size))] = 0
    return values


@given(weights(), BITS, SIZES, ENCODERS)
def test_encoding_again_changes_nothing(values: Float, bits: int, size: int, encoder: Encoder) -> None:
    once = encode_gse(values, bits, size, encoder).decoded()
    np.testing.assert_array_equal(encode_gse(once, bits, size, encoder).decoded(), once)


@given(weights(least=-10, most=10), BITS, SIZES)
def test_error_of_each_value_is_bounded(values: Float, bits: int, size: int) -> None:
    """Half a step where nothing saturates; the group's squared error never exceeds the plain exponent's."""
    gse = encode_gse(values, bits, size)
    assert gse.raised == 0
    steps = np.repeat(gse.steps, size, axis=1)[:, : values.shape[1]]
    error = np.abs(gse.decoded() - values)
    top = (1 << (bits - 1)) - 1
    inside = (values <= (top + 0.5) * steps) & (values >= -(top + 1.5) * steps)
    assert (error[inside] <= steps[inside] / 2).all()
    plain = quantize_groups(values, bits, size, axis=1)
    count = -(-values.shape[1] // size) * size
    groups = [np.pad(e, ((0, 0), (0, count - e.shape[1]))).reshape(-1, size) for e in (error, plain - values)]
    ours, theirs = (np.square(group, dtype=np.float64).sum(axis=1) for group in groups)
    assert (ours <= theirs * (1 + 1e-12)).all()


@given(weights(), BITS, SIZES, ENCODERS)
def test_streams_hold_everything(values: Float, bits: int, size: int, encoder: Encoder) -> None:
    gse = encode_gse(values, bits, size, encoder)
    streams = pack_bits(gse.mantissas, bits), pack_bits(gse.codes, EXPONENT_BITS)
    decoded = decode_gse(*streams, bits, size, gse.exponent_base, values.shape)
    np.testing.assert_array_equal(decoded, gse.decoded())
    used = gse_bits(values.shape[0], values.shape[1], bits, size)
    assert used <= 8 * sum(stream.size for stream in streams) < used + 8 * (bits + EXPONENT_BITS)


@given(st.integers(0, 2**20), BITS)
def test_groups_below_the_window_are_raised_and_told(seed: int, bits: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 32)).astype(np.float32)
    values[1] *= np.float32(2.0**-60)
    gse = encode_gse(values, bits, 16)
    assert gse.raised == 2
    error = np.abs(gse.decoded() - values)[1].max()
    assert 0 < gse.loss <= error <= np.abs(values[1]).max()
    assert encode_gse(values[:1], bits, 16).loss == 0.0


@pytest.mark.parametrize("bits", range(2, 9))
def test_extremes(bits: int) -> None:
    """Denormals, the largest floats, and zero: no overflow, nothing silently wrong."""
    largest = np.finfo(np.float32).max
    values = np.asarray([[largest, -largest, 1.0, 0.0], [1e-45, -1e-40, 0, 0], [0, 0, 0, 0]], np.float32)
    gse = encode_gse(values, bits, 4)
    assert np.isfinite(gse.decoded()).all()
    np.testing.assert_array_equal(gse.decoded()[1:], 0)
    lowest, highest = step_range(bits)
    assert lowest <= gse.exponent_base <= highest
    assert gse.raised == 2
    tiny = encode_gse(values[1:], bits, 4)
    assert tiny.exponent_base == lowest
    assert not tiny.decoded()[1].any()


def test_group_beyond_the_row() -> None:
    """A size that no array could be padded to is the whole row."""
    values = np.random.default_rng(0).standard_normal((2, 9)).astype(np.float32)
    huge, row = encode_gse(values, 5, 2**40), encode_gse(values, 5, 9)
    np.testing.assert_array_equal(huge.decoded(), row.decoded())
    streams = pack_bits(huge.mantissas, 5), pack_bits(huge.codes, EXPONENT_BITS)
    decoded = decode_gse(*streams, 5, 2**40, huge.exponent_base, (2, 9))
    np.testing.assert_array_equal(decoded, row.decoded())


def test_all_zero_tensor() -> None:
    gse = encode_gse(np.zeros((3, 9), np.float32), 4, 32)
    assert not gse.decoded().any()
    assert gse.raised == 0


def test_paper_by_hand() -> None:
    """max 0.75 < 2^0, so e = 0 and the step at 4 bits is 2^-3; magnitudes are floored."""
    gse = encode_gse(np.asarray([[0.75, -0.49, 0.124, 0.3]], np.float32), 4, 4, "paper")
    np.testing.assert_array_equal(gse.mantissas, [[6, -3, 0, 2]])
    assert gse.steps.item() == 0.125
    # A maximum that is a power of two itself needs the next exponent.
    assert encode_gse(np.asarray([[1.0]], np.float32), 4, 1, "paper").steps.item() == 0.25


def test_nearest_by_hand() -> None:
    """One less than the paper's exponent wins where saturating the largest costs less than coarse steps."""
    gse = encode_gse(np.asarray([[1.02, 0.3, -0.2, 0.1]], np.float32), 3, 4)
    np.testing.assert_array_equal(gse.mantissas, [[3, 1, -1, 0]])
    assert gse.steps.item() == 0.25


def test_refusals() -> None:
    good = np.ones((2, 4), np.float32)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or Inf"):
            encode_gse(np.full((1, 4), wrong, np.float32), 4, 4)
    with pytest.raises(ValueError, match="2 to 8 bits, not 9"):
        encode_gse(good, 9, 4)
    with pytest.raises(ValueError, match="at least 1 value"):
        encode_gse(good, 4, 0)
    with pytest.raises(ValueError, match="a matrix"):
        encode_gse(good[0], 4, 4)
    streams = np.zeros(8, np.uint8), np.zeros(5, np.uint8)
    with pytest.raises(ValueError, match="out of -126"):
        decode_gse(*streams, 4, 4, 120, (2, 4))
    with pytest.raises(ValueError, match="need"):
        decode_gse(*streams, 4, 4, 0, (200, 4))
    with pytest.raises(ValueError, match="finite"):
        decode_affine(streams[0], np.full(2, np.inf, np.float16), np.zeros(2, np.int8), 4, 4, (2, 4))
    with pytest.raises(ValueError, match="scales"):
        decode_affine(streams[0], np.ones(1, np.float16), np.zeros(1, np.int8), 4, 2, (2, 4))


@given(weights(least=-140, most=100), BITS, SIZES)
def test_groups_at_run_time_are_idempotent(values: Float, bits: int, size: int) -> None:
    # Saturation at the top may halve a group's maximum, not more; the paper's encoder never saturates.
    once = quantize_groups(values, bits, size, axis=-1, encoder="paper")
    np.testing.assert_array_equal(quantize_groups(once, bits, size, axis=-1, encoder="paper"), once)
    nearest = quantize_groups(values, bits, size, axis=-1)
    count = -(-values.shape[1] // size)
    for group in range(count):
        part = slice(group * size, (group + 1) * size)
        top = np.abs(values[:, part]).max(axis=1)
        step = np.ldexp(1.0, np.clip(np.frexp(top)[1] - (bits - 1), -126, None))
        error = np.abs(nearest[:, part].astype(np.float64) - values[:, part]).max(axis=1)
        assert (error <= step).all()
