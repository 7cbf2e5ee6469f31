"""Trellis-coded quantization: the stream, the best path, and rounding by data."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime_ops.trellis
from passes.rounding.second_order import damped, upper_factor
from passes.rounding.trellis import TrellisRows, round_trellis
from runtime_ops.kernels import decode_tcq_native, trellis_native
from runtime_ops.library import isas
from runtime_ops.trellis import (
    TCQ_BITS,
    WINDOW,
    _viterbi,
    chain_bytes,
    decode_tcq,
    level_spread,
    pack_windows,
    tcq_levels,
    trellis_path,
    unpack_windows,
)

Array = npt.NDArray[Any]
LEVELS = tcq_levels().astype(np.float32)


def as_is(scale: Array) -> Array:
    return scale


def chain(count: int, bits: int, seed: int = 0) -> Array:
    """Windows of a stream of random bits."""
    fresh = np.random.default_rng(seed).integers(0, 1 << bits, count)
    windows, window = [], int(np.random.default_rng(seed + 1).integers(1 << WINDOW))
    for new in fresh:
        windows.append(window)
        window = ((window << bits) & ((1 << WINDOW) - 1)) | int(new)
    return np.asarray(windows, np.uint16)


def cost(path: Array, values: Array, weights: Array) -> float:
    return float(np.sum(weights * np.square(values - tcq_levels().astype(float)[path])))


@pytest.mark.parametrize("bits", TCQ_BITS)
def test_every_step_reaches_every_part_of_the_distribution(bits: int) -> None:
    levels = tcq_levels().astype(int)
    assert levels.shape == (1 << WINDOW,)
    assert levels.min() == -127
    assert levels.max() == 127
    edges = np.sort(levels).reshape(1 << bits, -1)  # by part: its levels in order
    steps = np.sort(levels.reshape(-1, 1 << bits), axis=1)
    assert (edges[:, 0] <= steps).all()
    assert (steps <= edges[:, -1]).all()


@pytest.mark.parametrize("bits", TCQ_BITS)
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 101])
def test_streams_there_and_back(bits: int, count: int) -> None:
    windows = chain(count, bits)
    packed = pack_windows(windows, bits)
    assert packed.size == chain_bytes(count, bits)
    np.testing.assert_array_equal(unpack_windows(packed, bits, count), windows)
    stream = np.unpackbits(packed)
    for t, window in enumerate(windows):  # the definition
        taken = stream[bits * t : bits * t + WINDOW]
        assert int("".join(map(str, taken)), 2) == window


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="windows are those of no stream"):
        pack_windows(np.asarray([1, 2, 3]), 3)
    with pytest.raises(ValueError, match="need 6 bytes, not 3"):
        unpack_windows(np.zeros(3, np.uint8), 3, 8)
    with pytest.raises(ValueError, match="2 to 5 bits, not 6"):
        trellis_path(np.zeros(3), np.ones(3), 6)
    with pytest.raises(ValueError, match="scale must hold 2 numbers"):
        decode_tcq(np.zeros(64, np.uint8), np.ones(3), tcq_levels(), 3, (2, 4))
    with pytest.raises(ValueError, match="shape"):
        decode_tcq(np.zeros(64, np.uint8), np.ones(3), tcq_levels(), 3, (0, 4))


@pytest.mark.parametrize(("bits", "count"), [(2, 4), (3, 3), (5, 2)])
@pytest.mark.parametrize(("start", "end"), [(None, None), (77, None), (None, 1234), (4095, 9)])
def test_the_path_is_the_best_by_enumeration(
    bits: int, count: int, start: int | None, end: int | None
) -> None:
    rng = np.random.default_rng(bits)
    values, weights = rng.standard_normal(count) * 40, rng.uniform(0.1, 1, count)
    mask = (1 << WINDOW) - 1
    firsts = range(1 << WINDOW)
    if start is not None:
        firsts = range((start << bits) & mask, ((start << bits) & mask) + (1 << bits))
    first = np.asarray(firsts)
    paths = [first]
    for _ in range(count - 1):
        following = ((paths[-1][:, np.newaxis] << bits) & mask) + np.arange(1 << bits)
        paths = [np.repeat(path, 1 << bits) for path in paths] + [following.reshape(-1)]
    every = np.stack(paths, axis=1)
    if end is not None:
        if start is not None:  # with few values, only what follows from the start can be the end
            end = int(every[len(every) // 3, -1])
        keep = (1 << (WINDOW - bits)) - 1
        every = every[(every[:, -1] & keep) == (end & keep)]
    errors = np.square(values - tcq_levels().astype(float)[every]) @ weights
    found = trellis_path(values, weights, bits, start, end)
    assert cost(found, values, weights) == pytest.approx(errors.min(), rel=1e-5)
    assert (every == found).all(axis=1).any(), "a path that is not possible"


@pytest.mark.parametrize("bits", TCQ_BITS)
def test_long_chains_are_searched_in_pieces(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_ops.trellis, "_SEGMENT", 50)
    values = np.random.default_rng(0).standard_normal(180) * level_spread()
    path = trellis_path(values, np.ones(180), bits, start=5, end=6)
    pack_windows(np.concatenate([[5], path]), bits)  # refuses what does not fit together
    assert (path[-1] & 3) == (6 & 3)


@pytest.mark.parametrize(("bits", "decibels"), [(2, 11.2), (3, 17.0), (4, 22.8), (5, 28.5)])
def test_normal_numbers_err_far_less_than_with_scalar_codes(bits: int, decibels: float) -> None:
    """The best scalar quantizer of each rate has 9.3, 14.6, 20.2 and 26.0 dB."""
    values = np.random.default_rng(0).standard_normal(3000) * level_spread() / 1.07
    path = trellis_path(values, np.ones(values.size), bits)
    error = np.mean(np.square(values - tcq_levels().astype(float)[path]))
    assert 10 * np.log10(np.mean(np.square(values)) / error) > decibels


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("bits", TCQ_BITS)
@pytest.mark.parametrize(("start", "end"), [(None, None), (77, None), (None, 1234), (4095, 9)])
def test_the_library_finds_the_same_path(bits: int, start: int | None, end: int | None) -> None:
    rng = np.random.default_rng(bits)
    values = (rng.standard_normal(150) * 40).astype(np.float32)
    values[::10] = np.rint(values[::10])  # ties
    weights = rng.uniform(0, 1, 150).astype(np.float32)
    weights[::7] = 0
    wanted = _viterbi(values, weights, LEVELS, bits, start, end)
    for isa in isas():
        np.testing.assert_array_equal(
            trellis_native(values, weights, LEVELS, bits, start, end, isa=isa), wanted, err_msg=isa
        )


# Around a vector, around a tile of 64 rows and 64 columns, and one column or row alone.
SIZES = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 130])


@pytest.mark.usefixtures("native")
@given(
    bits=st.sampled_from(TCQ_BITS),
    rows=SIZES,
    columns=SIZES,
    spare=st.integers(0, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_instruction_set_decodes_the_same(
    bits: int, rows: int, columns: int, spare: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, chain_bytes(rows * columns, bits) + spare, dtype=np.uint8)
    levels = rng.integers(-128, 128, 1 << WINDOW).astype(np.int8)
    scale = rng.standard_normal(rows).astype(np.float16)
    wanted = decode_tcq(packed, scale, levels, bits, (rows, columns))
    for isa in isas():
        found = decode_tcq_native(packed, scale, levels, bits, (rows, columns), isa=isa)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32), err_msg=isa)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("isa", isas() or ["scalar"])
def test_streams_that_are_too_short_are_refused(isa: str) -> None:
    packed, scale = np.zeros(chain_bytes(8 * 27, 3), np.uint8), np.ones(8, np.float32)
    shape = (8, 3, 3, 3)
    assert (decode_tcq_native(packed, scale, tcq_levels(), 3, shape, isa=isa) == tcq_levels()[0]).all()
    with pytest.raises(ValueError, match="too few bytes"):
        decode_tcq_native(packed[:-1], scale, tcq_levels(), 3, shape, isa=isa)
    with pytest.raises(ValueError, match="scale must hold"):
        decode_tcq_native(packed, np.append(scale, scale[:1]), tcq_levels(), 3, shape, isa=isa)
    with pytest.raises(ValueError, match="instruction sets are"):
        decode_tcq_native(packed, scale, tcq_levels(), 3, shape, isa="mmx")


@pytest.mark.usefixtures("native")
def test_the_library_refuses_what_is_no_trellis() -> None:
    one = np.ones(1, np.float32)
    wide: Any = np.ones(1)
    with pytest.raises(ValueError, match="2 to 5 bits"):
        trellis_native(one, one, LEVELS, 7, None, None)
    with pytest.raises(ValueError, match="values is float64"):
        trellis_native(wide, one, LEVELS, 3, None, None)
    assert trellis_native(one[:0], one[:0], LEVELS, 3, None, None).size == 0


def problem(shape: tuple[int, int, int], seed: int = 0) -> tuple[Array, Array]:
    """(W1, H) with columns that depend on each other."""
    rng = np.random.default_rng(seed)
    problems, _, columns = shape
    x = rng.standard_normal((problems, columns, 3 * columns)) @ np.eye(3 * columns)
    mixed = x + 2 * x[:, :1]
    return rng.standard_normal(shape), damped(mixed @ mixed.swapaxes(1, 2) / (3 * columns), 0.01)


def objective(found: TrellisRows, target: Array, hessian: Array) -> float:
    difference = target - found.values
    return float(np.einsum("nmk,nkl,nml->", difference, hessian, difference))


@pytest.mark.parametrize("shape", [(1, 8, 12), (6, 1, 9), (2, 4, 70)])
def test_rounding_by_data_is_better_than_plain(shape: tuple[int, int, int]) -> None:
    target, hessian = problem(shape)
    plain = round_trellis(target, 3, as_is)
    found = round_trellis(target, 3, as_is, hessian, upper_factor(hessian))
    assert found.cost == pytest.approx(objective(found, target, hessian))
    assert found.cost < 0.8 * objective(plain, target, hessian)
    for rows in (plain, found):
        windows = rows.windows.transpose(2, 0, 1).reshape(-1)
        np.testing.assert_array_equal(unpack_windows(pack_windows(windows, 3), 3, windows.size), windows)
        np.testing.assert_allclose(
            rows.values, tcq_levels().astype(float)[rows.windows] * rows.scale[..., np.newaxis]
        )


def test_the_identity_is_plain_rounding() -> None:
    target, _ = problem((1, 6, 10))
    eye = np.eye(10)[np.newaxis]
    plain = round_trellis(target, 4, as_is)
    found = round_trellis(target, 4, as_is, eye, upper_factor(eye))
    assert found.cost <= plain.cost
    assert found.cost > 0.8 * plain.cost


def test_descent_ends_where_no_column_can_be_improved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.rounding.trellis._SWEEPS", 50)
    target, hessian = problem((1, 5, 8))
    found = round_trellis(target, 2, as_is, hessian, upper_factor(hessian), sweeps=50)
    levels = tcq_levels().astype(float)
    for column in range(8):
        gradient = (target - found.values) @ hessian
        wanted = found.values[..., column] + gradient[..., column] / hessian[:, column, column]
        start = int(found.windows[0, -1, column - 1]) if column else None
        end = int(found.windows[0, -1, column]) if column < 7 else None
        path = trellis_path((wanted / found.scale)[0], np.square(found.scale)[0], 2, start, end)
        best = np.sum(np.square(wanted - levels[path] * found.scale))
        held = np.sum(np.square(wanted - found.values[..., column]))
        assert held == pytest.approx(best, rel=1e-5)


def test_rows_of_zeros_stay_zero_and_change_nothing_else() -> None:
    target, hessian = problem((1, 6, 10))
    target[0, 2] = 0
    found = round_trellis(target, 3, as_is, hessian, upper_factor(hessian))
    assert (found.values[0, 2] == 0).all()
    assert np.isfinite(found.values).all()


def test_deterministic() -> None:
    target, hessian = problem((1, 6, 20))
    given = (target, 3, as_is, hessian, upper_factor(hessian))
    for left, right in itertools.pairwise(round_trellis(*given).windows for _ in range(3)):
        np.testing.assert_array_equal(left, right)
