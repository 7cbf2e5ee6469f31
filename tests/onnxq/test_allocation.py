"""Allocators against brute force, and their promises."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.allocation import Game, Problem, ShapleyState, evolve, ilp, ilp_front, play, threshold
from onnxq.allocation.shapley import permutations, value_problem
from onnxq.allocation.threshold import threshold_front
from passes.errors import UserError
from passes.policy import LayerPolicy, Policy, Scheme

BITS = (2, 4, 8)
CHOICES = tuple(LayerPolicy(Scheme.parse(f"gse{bits}")) for bits in BITS)


def problem(layers: int, seed: int, pairs: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    weights = rng.integers(100, 5000, layers)
    cost = np.outer(rng.lognormal(0, 1.5, layers), [1, 0.1, 0.001])
    size = np.outer(weights, BITS) / 8
    rho = rng.uniform(-0.8, 0.8, layers - 1) if pairs else np.zeros(0)
    names = tuple(f"layer{index}" for index in range(layers))
    return Problem(names, CHOICES, cost, np.ceil(size), size * 1000, 77, rho)


def best(held: Problem, budget: float) -> float:
    """The least damage of all assignments that fit."""
    every = (np.array(a, np.int64) for a in itertools.product(range(len(BITS)), repeat=held.count))
    return min(held.damage(a) for a in every if held.size(a) <= budget)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), pairs=st.booleans())
def test_the_integer_program_finds_what_enumeration_finds(seed: int, share: float, pairs: bool) -> None:
    held = problem(5, seed, pairs)
    low, high = held.size(held.uniform(0)), held.size(held.uniform(2))
    budget = low + share * (high - low)
    found = ilp(held, budget)
    assert held.size(found) <= budget
    assert held.damage(found) == pytest.approx(best(held, budget), rel=2e-4, abs=2e-4 * held.cost.max())


def test_what_the_solver_prints_stays_out_of_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = sys.modules["onnxq.allocation.ilp"]
    real = program.milp

    def talkative(*args: Any, **options: Any) -> Any:
        os.write(1, b"HighsMipSolverData\n")
        return real(*args, **options)

    monkeypatch.setattr(program, "milp", talkative)
    held = problem(5, 0)
    ilp(held, held.size(held.uniform(1)))
    os.write(1, b"document\n")
    assert capfd.readouterr().out == "document\n"


def test_bit_operations_are_a_constraint_of_their_own() -> None:
    held = problem(5, 0)
    most = held.operations(held.uniform(1))
    found = ilp(held, 10**9, bops=most)
    assert held.operations(found) <= most
    with pytest.raises(UserError, match="no policy of this search space fits"):
        ilp(held, 10**9, bops=1)


def test_a_budget_below_the_smallest_file_names_that_file() -> None:
    with pytest.raises(UserError, match="the smallest file of this search space takes"):
        ilp(problem(4, 0), 10)


@given(seed=st.integers(0, 10**6), tau=st.floats(1e-6, 100))
def test_threshold_takes_the_least_bits_below_tau(seed: int, tau: float) -> None:
    held = problem(6, seed)
    for layer, k in enumerate(threshold(held, tau)):
        if held.cost[layer, k] < tau:
            assert k == 0 or held.cost[layer, k - 1] >= tau
        else:
            assert k == len(BITS) - 1


def test_threshold_with_some_bits_only() -> None:
    held = problem(6, 1)
    assert set(threshold(held, 1e-9, (2, 4))) == {1}
    with pytest.raises(UserError, match="no choice of 5, 6 bits"):
        threshold(held, 0.1, (5, 6))
    with pytest.raises(UserError, match="--tau 0: must be above 0"):
        threshold(held, 0.0)


def test_fronts_trade_size_for_damage() -> None:
    held = problem(8, 2)
    for front in ([a for _, a in threshold_front(held, 5)], list(ilp_front(held, 6))[::-1]):
        sizes, damages = [held.size(a) for a in front], [held.damage(a) for a in front]
        assert 2 <= len(front) <= 6
        assert sizes == sorted(sizes)
        assert damages == sorted(damages, reverse=True)


def test_problems_and_policies_round_trip() -> None:
    held = problem(4, 3, pairs=True)
    again = Problem.from_json(held.to_json())
    assert again.layers == held.layers
    assert again.choices == held.choices
    assert (again.cost == held.cost).all()
    assert (again.correlation == held.correlation).all()
    assignment = np.array([0, 2, 1, 0])
    assert (held.assignment(held.policy(assignment)) == assignment).all()
    with pytest.raises(UserError, match="layer 'layer0': float is none of the choices"):
        held.assignment(Policy())
    for broken in ({}, {**held.to_json(), "cost": [[1.0]]}, {**held.to_json(), "rest": None}):
        with pytest.raises(UserError, match="is no table of sensitivities"):
            Problem.from_json(broken)


def test_evolution_keeps_to_its_seed_and_never_loses_a_measured_seed() -> None:
    held = problem(8, 4)
    seeds = list(ilp_front(held, 4))
    asked: list[bytes] = []

    def mse(assignment: Any) -> float:
        asked.append(assignment.tobytes())
        return held.damage(assignment) * (1 + 0.3 * float(assignment[0] == 0))

    first = evolve(held, seeds, mse, population=12, generations=4, seed=5)
    assert len(asked) == len(set(asked))
    again = evolve(held, seeds, mse, population=12, generations=4, seed=5)
    assert [entry.assignment.tolist() for entry in first] == [entry.assignment.tolist() for entry in again]
    for row in seeds:
        assert any(e.bytes <= held.size(row) and e.mse <= mse(row) for e in first)
    assert evolve(held, seeds, mse, stop=lambda: True) == []


def test_permutations_are_antithetic_and_seeded() -> None:
    game = Game(3, 3, 1)
    orders = list(permutations(game, 4, seed=1))
    assert (orders[0] == orders[1][::-1]).all()
    assert (orders[2] == orders[3][::-1]).all()
    assert [o.tolist() for o in orders] == [o.tolist() for o in permutations(game, 4, seed=1)]


def test_shapley_of_an_additive_game_is_exact_and_ranks_layers() -> None:
    """The MSE is additive over layers: every marginal of the top player is the layer's own gain."""
    gains = np.array([0.5, 1.0, 0.1])

    def mse(assignment: Any) -> float:
        return float(2 - (gains * assignment).sum())

    game = Game(3, 2, 0)
    state = ShapleyState.empty(game)
    for order in permutations(game, 4, seed=0):
        state = state.update(play(game, order, mse))
    assert state.psi[:, 1] == pytest.approx(gains)
    assert state.interval[:, 1] == pytest.approx(0, abs=1e-6)
    assert state.changes[-1] == pytest.approx(0, abs=1e-12)
    held = replace(problem(3, 0), choices=CHOICES[:2])
    held = replace(held, cost=held.cost[:, :2], bytes=np.array([[1.0, 2.0]] * 3), bops=held.bops[:, :2])
    assert ilp(value_problem(held, state), 77 + 4).tolist() == [0, 1, 0]


def test_truncation_skips_what_lies_behind_a_hopeless_coalition() -> None:
    asked = []

    def mse(assignment: Any) -> float:
        asked.append(assignment)
        return 1e6 if (assignment == 0).any() else 1.0

    game = Game(6, 2, 1)
    play(game, next(permutations(game, 1, 0)), mse)
    assert len(asked) == 2  # the start, and the first removal
