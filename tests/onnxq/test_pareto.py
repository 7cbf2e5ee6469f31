"""The front against brute force, the picks, and a hypervolume that never falls."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.search import Candidate, Latency, Objective, front, hypervolume, pick_three

_TWO = (Objective.METRIC, Objective.BYTES)
_ALL = (Objective.METRIC, Objective.BYTES, Objective.LATENCY, Objective.BOPS)


def make(
    index: int, top1: float, size: int, ratio: float = 0.5, bops: int = 10, mode: str = "static"
) -> Candidate:
    return Candidate(
        key=f"key{index}",
        name=f"{mode}-{index:03}",
        index=index,
        strategy="ranking",
        step=index,
        mode=mode,
        policy={},
        metrics={"top1": top1, "mse": 1 - top1},
        bytes=size,
        latency=Latency(ratio, ratio, ratio, 1.0, ratio, 9),
        bops=bops,
    )


FLOAT = make(0, 0.9, 1000, 1.0, 100, mode="float")

_SETS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 4)), max_size=25
).map(lambda rows: [make(i, a / 6, b * 100, c / 20, d * 10) for i, (a, b, c, d) in enumerate(rows)])


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize("objectives", [_TWO, _ALL])
@pytest.mark.parametrize("metric", ["top1", "mse"])
@given(candidates=_SETS)
def test_front_is_what_brute_force_finds(
    candidates: list[Candidate], objectives: tuple[Objective, ...], metric: str
) -> None:
    costs: dict[str, tuple[float, ...]] = {}
    for candidate in candidates:
        row = tuple(objective.cost(candidate, metric) or 0.0 for objective in objectives)
        if row not in costs.values():
            costs[candidate.name] = row
    expected = {n for n, row in costs.items() if not any(_dominates(other, row) for other in costs.values())}
    found = front(candidates, objectives, metric)
    assert {member.name for member in found} == expected
    assert [member.bytes for member in found] == sorted(member.bytes for member in found)


def test_what_cannot_stand_on_a_front() -> None:
    good = make(1, 0.5, 500)
    bad = [
        replace(make(2, 1.0, 1), status="failed", error="device lost"),
        replace(make(3, 1.0, 1), complete=False),
        replace(make(4, 1.0, 1), metrics={}),
        replace(make(5, 1.0, 1), metrics={"top1": float("nan")}),
    ]
    assert front([good, *bad], _TWO, "top1") == [good]
    assert front(bad, _TWO, "top1") == []
    no_latency = replace(make(6, 1.0, 1), latency=None)
    assert front([no_latency], _ALL, "top1") == []
    assert front([no_latency], _TWO, "top1") == [no_latency]


def test_duplicates_keep_the_first() -> None:
    assert [c.name for c in front([make(1, 0.5, 5), make(2, 0.5, 5)], _TWO, "top1")] == ["static-001"]


def test_infinite_sqnr_is_capped() -> None:
    exact = replace(make(1, 1.0, 5), metrics={"sqnr": float("inf")})
    assert front([exact, replace(make(2, 1.0, 9), metrics={"sqnr": 30.0})], _TWO, "sqnr") == [exact]


def test_three_picks_on_a_curve() -> None:
    curve = [make(1, 0.60, 250), make(2, 0.88, 300), make(3, 0.892, 400), make(4, 0.899, 900), FLOAT]
    picks = pick_three(front(curve, _TWO, "top1"), _TWO, "top1", reference=FLOAT)
    assert {name: pick.candidate.index for name, pick in picks.items()} == {
        "best-accuracy": 4,
        "smallest": 3,
        "balanced": 2,
    }
    assert "within 1.0 points of float" in picks["smallest"].reason
    assert "2.5x smaller" in picks["smallest"].reason
    assert all(pick.reason.endswith(".") for pick in picks.values())


def test_a_few_bytes_do_not_outweigh_a_point_of_accuracy() -> None:
    curve = [make(1, 0.60, 250_000), make(2, 0.87, 300_000), make(3, 0.88, 300_050), make(4, 0.895, 380_000)]
    curve.append(make(5, 0.899, 400_000))
    assert pick_three(curve, _TWO, "top1", reference=FLOAT)["balanced"].candidate.index == 3


def test_smallest_says_when_nothing_is_within_tolerance() -> None:
    curve = [make(1, 0.10, 250), make(2, 0.5, 300), make(3, 0.6, 400)]
    pick = pick_three(curve, _TWO, "top1", reference=FLOAT)["smallest"]
    assert pick.candidate.index == 1
    assert "nothing else" in pick.reason
    assert "80.0 points below float" in pick.reason


@given(candidates=_SETS, tolerance=st.none() | st.floats(0, 1))
@pytest.mark.parametrize("metric", ["top1", "mse"])
def test_picks_are_distinct_and_on_the_front(
    candidates: list[Candidate], tolerance: float | None, metric: str
) -> None:
    members = front(candidates, _TWO, metric)
    picks = pick_three(members, _TWO, metric, reference=FLOAT, tolerance=tolerance)
    if not members:
        assert picks == {}
        return
    assert list(picks) == ["best-accuracy", "smallest", "balanced"]
    chosen = [pick.candidate for pick in picks.values()]
    assert all(candidate in members for candidate in chosen)
    assert len({candidate.key for candidate in chosen}) == min(3, len(members))


def test_float_is_no_pick_while_there_is_anything_else() -> None:
    picks = pick_three([make(1, 0.8, 300), FLOAT], _TWO, "top1", reference=FLOAT)
    assert {pick.candidate.index for pick in picks.values()} == {1}
    assert {p.candidate for p in pick_three([FLOAT], _TWO, "top1").values()} == {FLOAT}


def test_best_accuracy_ties_go_to_the_smaller() -> None:
    assert (
        pick_three([make(1, 0.9, 500), make(2, 0.9, 400)], _TWO, "top1")["best-accuracy"].candidate.index == 2
    )


@given(candidates=_SETS)
def test_hypervolume_never_falls(candidates: list[Candidate]) -> None:
    values = [
        hypervolume(front(candidates[:n], _ALL, "top1"), _ALL, "top1", FLOAT)
        for n in range(len(candidates) + 1)
    ]
    assert values[0] == 0.0
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert 0.0 <= values[-1] <= 1.0


def test_hypervolume_of_one_point() -> None:
    assert hypervolume([make(1, 0.8, 250)], _TWO, "top1", FLOAT) == pytest.approx(0.8 * 0.75)
