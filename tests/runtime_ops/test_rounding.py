"""The solver against enumeration, plain rounding and the closed forms of its pieces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from passes.rounding.second_order import (
    Grid,
    Rounded,
    corrected_target,
    damped,
    objective,
    round_rows,
    upper_factor,
)

Float = npt.NDArray[np.float64]


def correlated(problems: int, size: int, seed: int = 0) -> Float:
    """Second moments of strongly correlated inputs, [problems, size, size]."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(problems, size, size)) + 2.0
    samples = mixed @ rng.normal(size=(problems, size, 40))
    result: Float = samples @ samples.swapaxes(1, 2) / 40
    return result


def grid_of(shape: tuple[int, ...], scales: list[float], size: int, bits: int = 2, **options: Any) -> Grid:
    groups = -(-shape[2] // size)
    held = np.stack([np.full((*shape[:2], groups), scale) for scale in scales])
    return Grid(held, np.zeros_like(held), -(1 << (bits - 1)), (1 << (bits - 1)) - 1, size, **options)


def solve(target: Float, second: Float, grid: Grid, damping: float = 0.01, **options: Any) -> Rounded:
    hessian = damped(second, damping)
    return round_rows(target, hessian, upper_factor(hessian), grid, **options)


def plain_cost(target: Float, hessian: Float, grid: Grid) -> Float:
    scale = np.repeat(grid.scale[0], grid.size, axis=-1)[..., : target.shape[-1]]
    real = np.clip(np.rint(target / scale), grid.lowest, grid.highest) * scale
    return objective(target - real, hessian)


def test_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    hessian = damped(correlated(3, 6), 0.01)
    factor = upper_factor(hessian)
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(
        factor.swapaxes(1, 2) @ factor @ hessian, np.tile(np.eye(6), (3, 1, 1)), atol=1e-9
    )


@pytest.mark.parametrize("seed", range(6))
def test_close_to_the_optimum_by_enumeration_and_never_worse_than_plain(seed: int) -> None:
    second = correlated(2, 4, seed)
    target = np.random.default_rng(seed).normal(size=(2, 3, 4))
    grid = grid_of((2, 3, 4), [0.5], 4, bits=3)
    hessian = damped(second, 0.01)
    found = solve(target, second, grid)
    every = np.array(list(itertools.product(range(-4, 4), repeat=4))) * 0.5
    difference = target[:, :, np.newaxis] - every
    best = np.einsum("nmck,nkl,nmcl->nmc", difference, hessian, difference, optimize=True).min(2)
    assert (found.cost >= best - 1e-9).all()
    assert (found.cost <= plain_cost(target, hessian, grid) + 1e-9).all()
    # Most of the way from plain rounding to the optimum.
    assert (found.cost - best).sum() <= 0.3 * (plain_cost(target, hessian, grid) - best).sum()
    np.testing.assert_allclose(found.cost, objective(target - found.values, hessian))


def test_candidates_of_groups_against_enumeration() -> None:
    total = np.zeros(3)
    for seed in range(6):
        second = correlated(1, 4, seed)
        target = np.random.default_rng(seed).normal(size=(1, 2, 4))
        grid = grid_of((1, 2, 4), [1.0, 0.5], 2)
        hessian = damped(second, 0.01)
        found = solve(target, second, grid)
        best = np.full((1, 2), np.inf)
        for scales in itertools.product((1.0, 0.5), repeat=2):
            steps = np.repeat(scales, 2)
            for codes in itertools.product(range(-2, 2), repeat=4):
                best = np.minimum(best, objective(target - np.asarray(codes) * steps, hessian))
        assert (found.cost >= best - 1e-9).all()
        assert set(np.unique(found.scale)) <= {1.0, 0.5}
        total += [best.sum(), found.cost.sum(), plain_cost(target, hessian, grid).sum()]
    assert total[1] - total[0] <= 0.3 * (total[2] - total[0])


@pytest.mark.parametrize("size", [8, 3])
def test_identity_gives_the_nearest_codes(size: int) -> None:
    target = np.random.default_rng(0).normal(size=(2, 4, 8))
    grid = grid_of((2, 4, 8), [0.5], size, bits=3)
    found = solve(target, np.tile(np.eye(8), (2, 1, 1)), grid, 0.1)
    np.testing.assert_array_equal(found.codes, np.clip(np.rint(target / 0.5), -4, 3))


def test_constant_inputs_are_rounded_to_nearest() -> None:
    target = np.random.default_rng(0).normal(size=(2, 1, 9))
    second = np.zeros((2, 9, 9))
    second[1] = correlated(1, 9)[0]
    found = solve(target, second, grid_of((2, 1, 9), [0.4], 32, bits=3))
    np.testing.assert_array_equal(found.codes[0], np.clip(np.rint(target[0] / 0.4), -4, 3))


def test_more_columns_than_are_worked_on_at_a_time() -> None:
    second = correlated(1, 150)
    target = np.random.default_rng(0).normal(size=(1, 5, 150))
    hessian = damped(second, 0.01)
    for size in (150, 32):
        grid = grid_of((1, 5, 150), [0.5], size, bits=4)
        found = solve(target, second, grid)
        np.testing.assert_allclose(found.cost, objective(target - found.values, hessian))
        assert found.cost.sum() < 0.1 * plain_cost(target, hessian, grid).sum()


def test_descent_reaches_a_point_that_no_single_code_improves() -> None:
    second, target = correlated(1, 70), np.random.default_rng(0).normal(size=(1, 3, 70))
    hessian = damped(second, 0.01)
    found = solve(target, second, grid_of((1, 3, 70), [0.5], 70, bits=4), sweeps=50)
    for column in range(70):
        for step in (-1, 1):
            codes = found.codes.copy()
            codes[..., column] = np.clip(codes[..., column] + step, -8, 7)
            assert (objective(target - codes * 0.5, hessian) >= found.cost - 1e-9).all()


def test_one_scale_a_tensor_is_shared_and_fitted_scales_are_represented() -> None:
    second, target = correlated(1, 12), np.random.default_rng(0).normal(size=(1, 4, 12))
    grid = grid_of((1, 4, 12), [0.5, 0.4, 0.6], 12, bits=4, shared=True)
    found = solve(target, second, grid)
    assert len(np.unique(found.scale)) == 1
    own = grid_of((1, 4, 12), [0.5, 0.4, 0.6], 12, bits=4)
    fitted = solve(target, second, own, represent=lambda scale: np.round(scale * 64) / 64)
    assert (fitted.cost <= solve(target, second, own).cost + 1e-9).all()
    held = fitted.scale[~np.isin(fitted.scale, [0.5, 0.4, 0.6])]
    np.testing.assert_array_equal(held * 64, np.round(held * 64))


def test_corrected_target_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(1, 6, 500))
    seen = real + 0.3 * rng.normal(size=(1, 6, 500))
    weight = rng.normal(size=(1, 2, 6))
    second, cross = seen @ seen.swapaxes(1, 2), real @ seen.swapaxes(1, 2)
    factor = upper_factor(damped(second, 1e-9))
    found = corrected_target(weight, weight @ cross, second, factor)
    wanted = np.linalg.lstsq(seen[0].T, (weight[0] @ real[0]).T, rcond=None)[0].T
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)
    heavy = corrected_target(weight, weight @ cross, second, upper_factor(damped(second, 1e6)))
    np.testing.assert_allclose(heavy, weight, atol=1e-5)


def test_deterministic() -> None:
    second, target = correlated(1, 40), np.random.default_rng(0).normal(size=(1, 3, 40))
    first, again = (solve(target, second, grid_of((1, 3, 40), [0.5, 0.25], 8)) for _ in range(2))
    np.testing.assert_array_equal(first.codes, again.codes)
