"""Candidates survive JSON exactly, and a key changes with everything it must change with."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.files import canonical_json
from onnxq.search import (
    Candidate,
    Latency,
    Objective,
    candidate_key,
    parse_objectives,
)
from passes.core.errors import UserError

_FLOATS = st.floats(allow_nan=False, allow_infinity=True)
_LATENCIES = st.builds(
    Latency,
    *[st.floats(0.001, 1e4) for _ in range(5)],
    st.integers(1, 1000),
)
_CANDIDATES = st.builds(
    Candidate,
    key=st.text(min_size=1),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    index=st.integers(0, 10**6),
    strategy=st.sampled_from(["ranking", "nsga2"]),
    step=st.integers(0, 100),
    mode=st.sampled_from(["static", "dynamic", "float"]),
    policy=st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers() | st.text())),
    changed=st.lists(st.text()).map(tuple),
    status=st.sampled_from(["ok", "failed"]),
    error=st.none() | st.text(),
    metrics=st.dictionaries(st.sampled_from(["top1", "mse", "sqnr"]), _FLOATS),
    stderr=st.dictionaries(st.sampled_from(["top1", "mse", "sqnr"]), _FLOATS),
    samples=st.integers(0, 10**6),
    complete=st.booleans(),
    bytes=st.integers(0, 2**40),
    latency=st.none() | _LATENCIES,
    bops=st.none() | st.integers(0, 2**60),
    sha256=st.none() | st.text(),
)

_PARTS: dict[str, Any] = {
    "model": "m",
    "policy": {"conv": {"bits": 8}},
    "data": "d",
    "metric": "top1",
    "device": "cpu",
    "tool_version": "1",
    "seed": 0,
}


@given(_CANDIDATES)
def test_round_trip_is_exact(candidate: Candidate) -> None:
    text = canonical_json(candidate.to_json())
    back = Candidate.from_json(json.loads(text))
    assert back == candidate
    assert canonical_json(back.to_json()) == text


def test_nan_survives() -> None:
    candidate = Candidate("k", "n", 0, "ranking", 0, "static", {}, metrics={"top1": math.nan})
    assert math.isnan(Candidate.from_json(json.loads(canonical_json(candidate.to_json()))).metrics["top1"])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"surprise": 1}, "surprise"), ({"latency": {"median": 1}}, "median"), ({"status": "good"}, "good")],
)
def test_malformed_documents_are_named(change: dict[str, Any], named: str) -> None:
    document = Candidate("k", "n", 0, "ranking", 0, "static", {}).to_json() | change
    with pytest.raises(ValueError, match=named):
        Candidate.from_json(document)


def test_missing_field_is_named() -> None:
    document = Candidate("k", "n", 0, "ranking", 0, "static", {}).to_json()
    del document["mode"]
    with pytest.raises(ValueError, match="mode"):
        Candidate.from_json(document)


@pytest.mark.parametrize("part", sorted(_PARTS))
def test_key_depends_on_every_part(part: str) -> None:
    changed = _PARTS | {part: {"other": 1}}
    assert candidate_key(**changed) != candidate_key(**_PARTS)
    assert candidate_key(**_PARTS) == candidate_key(**dict(reversed(_PARTS.items())))


def test_parse_objectives() -> None:
    assert parse_objectives(" metric, BYTES,latency") == (
        Objective.METRIC,
        Objective.BYTES,
        Objective.LATENCY,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric,latncy", "did you mean 'latency'"),
        ("metric,metric", "twice"),
        ("metric", "at least two"),
        ("", "at least two"),
    ],
)
def test_bad_objectives(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_objectives(text)


def test_latency_is_no_finer_than_the_clock() -> None:
    def at(ratio: float) -> float | None:
        latency = Latency(1.0, 1.0, 1.0, 1.0, ratio, 9)
        return Objective.LATENCY.cost(Candidate("k", "n", 0, "r", 0, "static", {}, latency=latency), "top1")

    assert at(0.51) == at(0.49) == 0.5
    assert at(0.56) == 0.55
    assert at(math.nan) is None
