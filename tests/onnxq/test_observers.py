"""The range methods, against numpy and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxq.calibration import METHODS, TensorStatistics, entropy, min_max, mse, parse_method, percentile
from passes.core.errors import DataError, UserError

Array = NDArray[np.float64]
_VALUES = hnp.arrays(np.float64, st.integers(1, 400), elements=st.integers(-5000, 5000).map(lambda v: v / 37))


def _stats(*parts: Array) -> TensorStatistics:
    stats = TensorStatistics("t")
    for part in parts:
        stats.update(part)
    return stats


def _error(values: Array, span: tuple[float, float], bits: int) -> float:
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    step = (high - low) / (2**bits - 1)
    levels = np.clip(np.rint((values - low) / step), 0, 2**bits - 1)
    return float(np.mean((levels * step + low - values) ** 2))


@given(_VALUES, st.sampled_from([50.0, 90.0, 99.0, 99.9, 99.99, 100.0]), st.integers(1, 5))
def test_streamed_percentile_is_numpys_within_one_bin(values: Array, p: float, parts: int) -> None:
    stats = _stats(*np.array_split(values, parts))
    low, high = percentile(p)(stats, 8)
    tail = 100 - p
    if values.min() >= 0:
        wanted = (values.min(), np.percentile(values, 100 - tail))
    elif values.max() <= 0:
        wanted = (np.percentile(values, tail), values.max())
    else:
        wanted = (np.percentile(values, tail / 2), np.percentile(values, 100 - tail / 2))
    slack = stats.width * (1 + 1e-9)
    assert abs(low - wanted[0]) <= slack
    assert abs(high - wanted[1]) <= slack


@given(_VALUES, st.sampled_from(sorted(METHODS)), st.sampled_from([2, 4, 8, 16]))
def test_every_range_lies_in_min_max_and_repeats(values: Array, name: str, bits: int) -> None:
    stats = _stats(values)
    low, high = parse_method(name)(stats, bits)
    assert stats.min <= low <= high <= stats.max
    assert parse_method(name)(stats, bits) == (low, high)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-20])
def test_constants(name: str, value: float) -> None:
    assert parse_method(name)(_stats(np.full(9, value)), 8) == (value, value)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_values_is_a_data_error(name: str) -> None:
    with pytest.raises(DataError, match="no values"):
        parse_method(name)(TensorStatistics("t"), 8)


def test_min_max() -> None:
    assert min_max(_stats(np.array([3.0, -1.5]), np.array([7.25])), 8) == (-1.5, 7.25)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sides", ["two", "one", "skewed", "negative"])
def test_mse_is_near_the_best_of_a_brute_force_search(bits: int, sides: str) -> None:
    x = np.random.default_rng(0).laplace(size=40_000)
    values = {"two": x, "one": np.maximum(x, 0), "skewed": np.where(x < 0, x / 8, x), "negative": -np.abs(x)}[
        sides
    ]
    found = _error(values, mse(_stats(values), bits), bits)
    lows = values.min() * np.linspace(0.05, 1, 39) if values.min() < 0 else [0.0]
    highs = values.max() * np.linspace(0.05, 1, 39) if values.max() > 0 else [0.0]
    best = min(_error(values, (a, b), bits) for a in lows for b in highs)
    assert found <= 1.1 * best
    assert found <= _error(values, (values.min(), values.max()), bits)


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_entropy_cuts_a_lonely_outlier_and_keeps_a_full_range(shift: float) -> None:
    rng = np.random.default_rng(0)
    bulk = rng.uniform(-1, 1, 200_000) + shift
    assert entropy(_stats(bulk), 8) == pytest.approx((bulk.min(), bulk.max()), rel=0.03)
    outlier = 20.0 + shift
    low, high = entropy(_stats(bulk, np.array([outlier])), 8)
    assert low == pytest.approx(bulk.min())
    assert high < outlier / 1.5


def test_entropy_keeps_everything_when_the_levels_are_finer_than_the_bins() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    assert entropy(_stats(values), 16) == (values.min(), values.max())


def test_entropy_and_mse_clip_more_at_fewer_bits() -> None:
    stats = _stats(np.random.default_rng(0).laplace(size=100_000))
    for method in (entropy, mse):
        widths = [high - low for low, high in (method(stats, bits) for bits in (3, 4, 6, 8))]
        assert widths == sorted(widths)
        assert widths[0] < 0.8 * widths[-1]


def test_specs() -> None:
    stats = _stats(np.arange(1000.0))
    assert parse_method("percentile")(stats, 8) == percentile(99.99)(stats, 8)
    assert parse_method("percentile:90")(stats, 8) == percentile(90)(stats, 8)
    assert parse_method("minmax")(stats, 8) == (0, 999)
    with pytest.raises(UserError, match="minmax, percentile, entropy, mse"):
        parse_method("max")
    for bad in ("percentile:0", "percentile:101", "percentile:x", "percentile:nan", "minmax:3"):
        with pytest.raises(UserError, match="calibration method"):
            parse_method(bad)
