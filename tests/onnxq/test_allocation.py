"""Allocators against brute force, and their promises."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.allocation import LayerCosts, Problem, evolve, ilp, ilp_front, read_costs, threshold
from onnxq.allocation.ilp import quiet_stdout
from onnxq.allocation.resources import parse_limits
from onnxq.allocation.shapley import CEILING, ShapleyState, Walk, play, value_problem, walks
from onnxq.allocation.threshold import threshold_front
from passes.core.errors import UserError
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
    found = ilp(held, 10**9, limits={"bops": most})
    assert held.operations(found) <= most
    with pytest.raises(UserError, match="`bops_budget` 1: the cheapest policy of this search space takes"):
        ilp(held, 10**9, limits={"bops": 1})


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
    with pytest.raises(UserError, match="`tau` 0: must be above 0"):
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
        with pytest.raises(UserError, match="is not a table of sensitivities"):
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


def test_walks_are_antithetic_seeded_and_lead_between_feasible_policies() -> None:
    held = problem(8, 5)
    found = list(walks(held, 5, seed=1))
    assert len(found) == 5
    for one, other in ((found[0], found[1]), (found[2], found[3])):
        assert one.order == other.order[::-1]
        assert (one.start == other.start).all()
        assert (one.end == other.end).all()
    for walk in found:
        assert set(walk.order) == set(np.flatnonzero(walk.start != walk.end).tolist())
        assert held.size(walk.start) > held.size(walk.end)
    assert [w.order for w in found] == [w.order for w in walks(held, 5, seed=1)]
    assert [w.order for w in found] != [w.order for w in walks(held, 5, seed=2)]


def shapley(held: Problem, mse: Any, count: int = 10) -> ShapleyState:
    state = ShapleyState.empty(held)
    for walk in walks(held, count, seed=0):
        state = state.update(play(walk, mse))
    return state


def test_shapley_of_an_additive_game_is_the_integer_program() -> None:
    held = problem(8, 6)
    state = shapley(held, held.damage)
    assert state.count == len(state.changes) == 10
    assert (state.psi[:, 0] == 0).all()
    # ln against the quotient by the mean of both ends: equal but for large steps.
    assert state.factors == pytest.approx(1, abs=0.25)
    values = value_problem(held, state)
    for share in (0.3, 0.5, 0.7):
        budget = share * held.size(held.uniform(2))
        assert held.damage(ilp(values, budget)) <= 1.25 * held.damage(ilp(held, budget))
    assert 0 < held.size(state.policy) < held.size(held.uniform(2))


def test_shapley_corrects_a_layer_whose_error_hurts_more_than_alone() -> None:
    held = replace(problem(6, 0), cost=np.outer(np.ones(6), [1, 0.1, 0.001]))
    held = replace(held, bytes=np.outer(np.ones(6), [100.0, 200.0, 400.0]))
    worse = replace(held, cost=held.cost * np.array([[6.0], [1], [1], [1], [1], [1]]))
    state = shapley(held, worse.damage)
    assert state.factors[0] > 1.5 * state.factors[1:].max()
    assert np.isfinite(state.interval[state.seen > 1]).all()
    assert np.isinf(state.interval[state.seen < 2]).all()
    budget = held.size(np.array([2, 0, 1, 0, 1, 0]))
    assert ilp(value_problem(held, state), budget)[0] == ilp(worse, budget)[0] > 0


def test_truncation_skips_what_lies_behind_a_hopeless_coalition() -> None:
    held = problem(6, 1)
    walk = Walk(held.uniform(2), held.uniform(0), [3, 0, 1, 2, 4, 5])
    steps = play(walk, lambda a: 1.0 if (a == 2).all() else 1e6)
    assert [step.layer for step in steps] == [3]
    assert steps[0].after / steps[0].before > CEILING
    state = ShapleyState.empty(held).update(steps)
    assert np.flatnonzero(state.seen.sum(axis=1)).tolist() == [3]
    assert state.observed[3].sum() == pytest.approx(np.log(1e6))


def latency(held: Problem) -> LayerCosts:
    """A device on which four bits are the fastest."""
    return LayerCosts(
        "latency",
        {name: {"gse2:block32": 2.0, "gse4:block32": 1.0, "gse8:block32": 3.0} for name in held.layers},
        "ms",
        0.5,
    )


def test_a_cost_model_becomes_a_limit() -> None:
    held = problem(5, 7)
    timed = held.with_costs(latency(held))
    assert timed.resources["latency"].of(held.uniform(2)) == pytest.approx(15.5)
    found = ilp(timed, limits={"latency": 9.6})
    assert timed.within(found, {"latency": 9.6})
    every = (np.array(a, np.int64) for a in itertools.product(range(3), repeat=5))
    fitting = [held.damage(a) for a in every if timed.within(a, {"latency": 9.6})]
    assert held.damage(found) == pytest.approx(min(fitting), rel=1e-3)
    assert (ilp(timed, limits={"latency": 5.5}) == 1).all()
    with pytest.raises(UserError, match=r"`limits` latency=5: the cheapest policy .* takes 5\.5 ms"):
        ilp(timed, limits={"latency": 5.0})
    with pytest.raises(UserError, match=r"no policy of this search space fits .* bytes and 6 latency"):
        ilp(timed, held.size(held.uniform(0)), limits={"latency": 6.0})
    with pytest.raises(UserError, match="no resource 'energy' to limit; there is bytes, bops, latency"):
        ilp(timed, limits={"energy": 5.0})
    for a in ilp_front(timed, 6, "latency", {"bytes": held.size(held.uniform(1))}):
        assert held.size(a) <= held.size(held.uniform(1))
    assert Problem.from_json(timed.to_json()).resources["latency"].of(found) == pytest.approx(
        timed.resources["latency"].of(found)
    )


@pytest.mark.skipif(os.name == "nt", reason="the C library is found by its absence of a name")
def test_what_the_solver_prints_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    import ctypes

    with quiet_stdout():
        ctypes.CDLL(None).puts(b"debris")
        os.write(1, b"more of it")
    sys.stdout.write("kept\n")
    sys.stdout.flush()
    assert capfd.readouterr().out == "kept\n"


def test_the_evolution_keeps_limits() -> None:
    held = problem(6, 8)
    most = held.size(held.uniform(1))
    asked: list[int] = []

    def mse(assignment: Any) -> float:
        asked.append(held.size(assignment))
        return held.damage(assignment)

    found = evolve(held, list(ilp_front(held, 6)), mse, generations=3, allowed=lambda a: held.size(a) <= most)
    assert found
    assert max(asked) <= most


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ('{"name": "latency"}', "is no table of costs"),
        ('{"name": "bops", "layers": {}}', "'name' must be a word other than bops, bytes, metric"),
        ('{"name": "ms", "layers": {"a": {"gse4": -1}}}', "layer 'a': expected {SCHEME: COST}"),
        ('{"name": "ms", "layers": {}, "rest": "x"}', "'rest' must be a number"),
    ],
)
def test_broken_tables_of_costs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"costs.json: .*{re.escape(message)}"):
        read_costs(path)


def test_a_table_of_costs_must_know_layers_and_choices(tmp_path: Path) -> None:
    held = problem(3, 0)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(latency(held).to_json()))
    assert read_costs(path) == latency(held)
    fewer = LayerCosts("latency", {name: {"gse2:block32": 1.0} for name in held.layers})
    with pytest.raises(UserError, match="layer 'layer0' has no cost for gse4:block32; it has gse2:block32"):
        held.with_costs(fewer)
    with pytest.raises(UserError, match="layer 'layer0' is not in the table"):
        held.with_costs(LayerCosts("latency", {}))
    for text in ("latency", "latency=-1", "latency=much"):
        with pytest.raises(UserError, match="is NAME=NUMBER"):
            parse_limits([text], ["latency"])
    with pytest.raises(UserError, match="no resource 'power'; there is latency"):
        parse_limits(["power=3"], ["latency"])
