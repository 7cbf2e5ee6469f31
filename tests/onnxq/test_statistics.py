"""Running statistics are exact in min, max and count; their histogram in everything but the bin's width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxq.calibration.statistics import BINS, TensorStatistics
from passes.core.errors import DataError

Floats = NDArray[np.float32]

# Subnormals are left out: a library in the process may have told the CPU to flush them.
_FLOATS = hnp.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)
_MODEST = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
)


def _of(*parts: NDArray[np.generic]) -> TensorStatistics:
    stats = TensorStatistics("t")
    for part in parts:
        stats.update(part)
    return stats


def _same(a: TensorStatistics, b: TensorStatistics) -> bool:
    (spans_a, numbers_a), (spans_b, numbers_b) = a.to_arrays(), b.to_arrays()
    return spans_a.tobytes() == spans_b.tobytes() and numbers_a.tobytes() == numbers_b.tobytes()


@given(_FLOATS)
def test_min_max_and_count_are_exact(values: Floats) -> None:
    stats = _of(values)
    assert (stats.min, stats.max) == (values.min(), values.max())
    assert stats.count == values.size == stats.counts.sum()


@given(_FLOATS)
def test_every_value_is_in_its_bin(values: Floats) -> None:
    stats = _of(values)
    numbers = np.floor(values.astype(np.float64) / stats.width).astype(np.int64) - stats.first
    np.testing.assert_array_equal(stats.counts, np.bincount(numbers, minlength=BINS))
    edges = stats.edges()
    assert edges[0] <= stats.min
    assert stats.max < edges[-1] or stats.max == 0


@given(_MODEST, st.lists(st.integers(0, 300), max_size=5), st.randoms(use_true_random=False))
def test_neither_order_nor_batches_matter(values: Floats, cuts: list[int], random: object) -> None:
    shuffled = np.random.default_rng(len(cuts)).permutation(values)
    parts = np.split(shuffled, sorted(min(cut, values.size) for cut in cuts))
    assert _same(_of(values), _of(*parts))


def test_growing_over_many_orders_of_magnitude_equals_one_pass() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(5000) * 10.0**k).astype(np.float32) for k in range(-30, 31, 3)]
    assert _same(_of(*parts), _of(np.concatenate(parts)))
    assert _same(_of(*parts), _of(*parts[::-1]))


def test_the_bins_are_at_least_half_used() -> None:
    for scale in (1e-20, 0.3, 1.0, 700.0, 1e20):
        stats = _of(np.linspace(-scale, 1.7 * scale, 10_000))
        assert BINS / 2 - 2 <= 2.7 * scale / stats.width <= BINS


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.7, 1e-38, 3e38, -3e38])
def test_constants(value: float) -> None:
    stats = _of(np.full((2, 3), value, np.float32), np.full(4, value, np.float32))
    assert (stats.min, stats.max, stats.count) == (float(np.float32(value)), float(np.float32(value)), 10)
    assert stats.counts.max() == 10


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_other_types(dtype: type) -> None:
    stats = _of(np.array([0, 1, 1, 0, 1]).astype(dtype))
    assert (stats.min, stats.max, stats.count) == (0, 1, 5)
    assert sorted(stats.counts[stats.counts > 0]) == [2, 3]


def test_empty_arrays_change_nothing() -> None:
    assert _same(_of(np.zeros((0, 3), np.float32)), TensorStatistics("t"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_tensor_and_leave_the_statistics(bad: float) -> None:
    stats = _of(np.ones(3, np.float32))
    before = stats.to_arrays()[1].copy()
    with pytest.raises(DataError, match="tensor 't'"):
        stats.update(np.array([1, bad, 2], np.float32))
    np.testing.assert_array_equal(stats.to_arrays()[1], before)


@given(_FLOATS)
def test_arrays_round_trip(values: Floats) -> None:
    stats = _of(values)
    assert _same(stats, TensorStatistics.from_arrays("t", *stats.to_arrays()))


@given(_FLOATS)
def test_magnitudes_count_everything_in_a_fixed_size(values: Floats) -> None:
    stats = _of(values)
    counts, width = stats.magnitudes()
    assert counts.sum() == values.size
    assert len(counts) <= BINS
    assert len(counts) * width >= np.abs(values).max()
