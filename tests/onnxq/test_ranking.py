"""Ranking: the order, every step of the ladder, and prefixes that are spread out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.search.layer_errors import LayerErrors
from onnxq.search.ranking import coarse_to_fine, rank, ranking_proposals
from passes.policy import FLOAT, LayerPolicy, Scheme

INT8 = LayerPolicy(Scheme.parse("int8:channel"), Scheme.parse("uint8"))
INT4 = LayerPolicy(Scheme.parse("int4:channel"), Scheme.parse("uint8"))
KEEP = LayerPolicy(FLOAT, FLOAT)


def test_worst_first_ties_in_graph_order() -> None:
    errors = [
        LayerErrors(name, "Conv", 0, 0, score)
        for name, score in (("a", 0.2), ("b", 0.9), ("c", 0.2), ("d", 0.5))
    ]
    assert rank(errors) == ["b", "d", "a", "c"]


def test_one_more_layer_per_step() -> None:
    order = ["b", "d", "a"]
    steps = ranking_proposals("static", [INT8, KEEP], order)
    assert [step.changed for step in steps] == [(), ("b",), ("b", "d")]
    assert [step.name for step in steps] == ["static-000", "static-001", "static-002"]
    for step in steps:
        assert set(step.policy.quantized) == set(order) - set(step.changed)
        assert all(step.policy[name] == INT8 for name in step.policy.quantized)


def test_a_longer_ladder_walks_rung_by_rung() -> None:
    steps = ranking_proposals("static", [INT4, INT8, KEEP], ["b", "a"])
    chosen = [(str(s.policy["b"].weights), str(s.policy["a"].weights)) for s in steps]
    assert chosen == [
        ("int4:channel", "int4:channel"),
        ("int8:channel", "int4:channel"),
        ("int8:channel", "int8:channel"),
        ("float", "int8:channel"),
    ]
    assert len({step.name for step in steps}) == len(steps)


def test_without_float_every_step_is_kept() -> None:
    assert len(ranking_proposals("static", [INT4, INT8], ["a", "b"])) == 3
    assert len(ranking_proposals("static", [INT8], ["a", "b"])) == 1


@given(st.integers(0, 60))
def test_coarse_to_fine_is_a_permutation_with_the_ends_first(count: int) -> None:
    steps = ranking_proposals("static", [INT8, INT4], [f"l{i}" for i in range(count)])
    order = [step.step for step in coarse_to_fine(steps)]
    assert sorted(order) == list(range(len(steps)))
    assert order[0] == 0
    if count:
        assert order[1] == count
    for size in (3, 5, 9, 17):
        prefix = sorted(order[:size])
        gaps = [b - a for a, b in itertools.pairwise(prefix)]
        if len(prefix) == size:
            assert max(gaps) <= -(-count // (size - 1)) + 1


@pytest.mark.parametrize("count", [0, 1])
def test_few_proposals(count: int) -> None:
    steps = ranking_proposals("static", [INT8, KEEP], ["a"])[:count]
    assert list(coarse_to_fine(steps)) == steps
