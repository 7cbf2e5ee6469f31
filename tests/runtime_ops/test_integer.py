"""Integer formats: properties of scales, codes and their decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_ops import IntegerFormat, affine_parameters, dequantize, quantize, symmetric_scale

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
Array = npt.NDArray[np.float32]

formats = st.builds(IntegerFormat, st.sampled_from(BITS), st.booleans())
signed_formats = st.builds(IntegerFormat, st.sampled_from(BITS), st.just(True), st.booleans())
numbers = st.floats(-1e6, 1e6, width=32)
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=numbers)
quick = settings(max_examples=60, deadline=None)


def _error_bound(scale: Any, values: Array) -> Any:
    """Half a step, and the rounding of float32 in value and product."""
    return np.asarray(scale) * 0.5 * (1 + 1e-4) + np.abs(values) * 3e-7 + np.finfo(np.float32).tiny


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_range_and_container(bits: int, signed: bool) -> None:
    fmt = IntegerFormat(bits, signed)
    assert fmt.highest - fmt.lowest == 2**bits - 1
    info = np.iinfo(fmt.container)
    assert info.min <= fmt.lowest <= fmt.highest <= info.max
    assert fmt.container.itemsize == (2 if bits == 16 else 1)
    if signed:
        assert IntegerFormat(bits, True, narrow=True).lowest == -fmt.highest


@quick
@given(rows, formats)
def test_affine_round_trip_is_within_half_a_step(values: Array, fmt: IntegerFormat) -> None:
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    scale, zero = affine_parameters(low, high, fmt)
    codes = quantize(values, scale, zero, fmt)
    assert codes.dtype == fmt.container
    assert codes.min() >= fmt.lowest
    assert codes.max() <= fmt.highest
    real = dequantize(codes, scale, zero)
    # Ranges below the smallest normal number have no scale of their own: they decode to zero.
    held = (np.maximum(high, 0) - np.minimum(low, 0)) / (fmt.highest - fmt.lowest) >= np.finfo(
        np.float32
    ).tiny
    assert (np.abs(real - values) <= np.where(held, _error_bound(scale, values), np.abs(values))).all()
    np.testing.assert_array_equal(quantize(real, scale, zero, fmt), codes)


@quick
@given(rows, formats)
def test_zero_is_exact(values: Array, fmt: IntegerFormat) -> None:
    scale, zero = affine_parameters(values.min(), values.max(), fmt)
    assert dequantize(quantize(np.zeros(3, np.float32), scale, zero, fmt), scale, zero).tolist() == [0, 0, 0]


@quick
@given(rows, signed_formats)
def test_symmetric_round_trip_and_saturation(values: Array, fmt: IntegerFormat) -> None:
    scale = symmetric_scale(values, fmt, (1,), search=False)
    zero = np.zeros_like(scale, fmt.container)
    real = dequantize(quantize(values, scale, zero, fmt), scale, zero)
    assert (np.abs(real - values) <= _error_bound(scale, values)).all()
    beyond = quantize(values * np.float32(4), scale, zero, fmt)
    assert beyond.min() >= fmt.lowest
    assert beyond.max() <= fmt.highest


@quick
@given(rows, signed_formats)
def test_search_never_loses_to_the_maximum(values: Array, fmt: IntegerFormat) -> None:
    def error(scale: Array) -> Any:
        zero = np.zeros_like(scale, fmt.container)
        real = dequantize(quantize(values, scale, zero, fmt), scale, zero)
        return np.square(real.astype(np.float64) - values).sum(axis=1)

    plain = error(symmetric_scale(values, fmt, (1,), search=False))
    searched = error(symmetric_scale(values, fmt, (1,), search=True))
    assert (searched <= plain * (1 + 1e-5)).all()


@quick
@given(rows, signed_formats, st.booleans())
def test_idempotent(values: Array, fmt: IntegerFormat, search: bool) -> None:
    scale = symmetric_scale(values, fmt, (1,), search)
    zero = np.zeros_like(scale, fmt.container)
    once = dequantize(quantize(values, scale, zero, fmt), scale, zero)
    np.testing.assert_array_equal(dequantize(quantize(once, scale, zero, fmt), scale, zero), once)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_groups_and_denormals(bits: int, search: bool) -> None:
    fmt = IntegerFormat(bits)
    values = np.asarray([[0, 0, 0], [1e-42, -1e-40, 0], [1e-10, -1e-10, 0], [1, -1, 0.5]], np.float32)
    scale = symmetric_scale(values, fmt, (1,), search)
    assert np.isfinite(scale).all()
    assert (scale >= np.finfo(np.float32).tiny).all()
    real = dequantize(
        quantize(values, scale, np.zeros_like(scale, fmt.container), fmt), scale, np.zeros((), np.int8)
    )
    assert real[0].tolist() == [0, 0, 0]
    assert np.abs(real[1]).max() <= 1e-37
    assert np.isfinite(real).all()


@pytest.mark.parametrize("low", [0.0, -1e30, 1e-45, -3e38])
def test_extreme_ranges_stay_finite(low: float) -> None:
    fmt = IntegerFormat(8, signed=False)
    scale, zero = affine_parameters(low, 3.4e38, fmt)
    assert np.isfinite(scale).all()
    values = np.asarray([low, 0, 3.4e38], np.float32)
    real = dequantize(quantize(values, scale, zero, fmt), scale, zero)
    assert np.isfinite(real).all()
    assert real[1] == 0


def test_known_codes() -> None:
    fmt = IntegerFormat(8, signed=False)
    scale, zero = affine_parameters(-1.0, 1.55, fmt)
    assert float(scale) == pytest.approx(0.01)
    assert int(zero) == 100
    codes = quantize(
        np.asarray([-9, -1, 0, 0.005, 0.015, 1.55, 9], np.float32), np.asarray(0.01, np.float32), zero, fmt
    )
    assert codes.tolist() == [0, 0, 100, 100, 102, 255, 255]  # half to even, saturated
