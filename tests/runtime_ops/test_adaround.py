"""Learned rounding against enumeration, and as a part of the solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from passes.rounding.learned import Learning, learn_codes
from passes.rounding.second_order import damped, objective, round_rows, upper_factor
from tests.runtime_ops.test_rounding import Float, correlated, grid_of, plain_cost


def neighbours(target: Float, scale: float, lowest: int, highest: int) -> Float:
    """Every choice of the code below or above each weight of a row: [rows, 2^K, K]."""
    columns = target.shape[-1]
    up = np.array(list(itertools.product((0, 1), repeat=columns)))
    codes: Float = np.clip(np.floor(target / scale)[..., np.newaxis, :] + up, lowest, highest)
    return codes


@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_choice_of_neighbours_by_enumeration(seed: int) -> None:
    second = correlated(1, 6, seed)
    target = np.random.default_rng(seed).normal(size=(1, 8, 6))
    hessian, scale = damped(second, 0.1), np.full(target.shape, 0.5)
    codes = learn_codes(target, hessian, scale, np.zeros_like(target), -4, 3, Learning())
    every = neighbours(target[0], 0.5, -4, 3)
    difference = target[0][:, np.newaxis] - every * 0.5
    costs = np.einsum("mck,kl,mcl->mc", difference, hessian[0], difference, optimize=True)
    found = objective(target - codes * 0.5, hessian)[0]
    plain = plain_cost(target, hessian, grid_of(target.shape, [0.5], 6, bits=3))[0]
    # Each code is one of the two; the sum is most of the way from plain rounding to the optimum.
    assert (np.abs(codes - np.clip(target / 0.5, -4, 3)) <= 1).all()
    assert (found >= costs.min(1) - 1e-9).all()
    assert (found - costs.min(1)).sum() <= 0.15 * (plain - costs.min(1)).sum()


def test_identity_gives_the_nearest_codes() -> None:
    target = np.random.default_rng(0).normal(size=(2, 4, 8))
    scale, zero = np.full(target.shape, 0.5), np.full(target.shape, 2.0)
    codes = learn_codes(target, np.tile(np.eye(8), (2, 1, 1)), scale, zero, 0, 7, Learning())
    np.testing.assert_array_equal(codes, np.clip(np.rint(target / 0.5) + 2, 0, 7))


@pytest.mark.parametrize(("size", "shared"), [(12, False), (4, False), (12, True)])
def test_never_worse_than_the_solver_without_it_and_somewhere_better(size: int, shared: bool) -> None:
    gained = 0.0
    for seed in range(4):
        second = correlated(2, 12, seed)
        target = np.random.default_rng(seed).normal(size=(2, 8, 12))
        grid = grid_of(target.shape, [0.5, 0.4], size, bits=3, shared=shared)
        hessian = damped(second, 0.05)
        factor = upper_factor(hessian)
        without = round_rows(target, hessian, factor, grid)
        found = round_rows(target, hessian, factor, grid, learning=Learning(steps=300))
        assert (found.cost <= without.cost + 1e-9).all()
        np.testing.assert_allclose(found.cost, objective(target - found.values, hessian))
        gained += (without.cost - found.cost).sum() / without.cost.sum()
    assert gained > 0
