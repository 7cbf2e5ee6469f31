"""A slice of the peer's tests (all of them: benchmarks/backend_suite.py): outputs and validity are kept."""

from __future__ import annotations

import pytest

from benchmarks.backend_suite import cases, evaluate


@pytest.mark.filterwarnings("ignore")  # the peer's cases overflow and divide by zero on purpose
@pytest.mark.parametrize(
    ("kind", "sample", "least"),
    [("pytorch-converted", 0, 50), ("pytorch-operator", 0, 20), ("simple", 0, 15), ("node", 150, 80)],
)
def test_passes_keep_what_the_peer_expects(kind: str, sample: int, least: int) -> None:
    outcome = evaluate(cases(kind, sample=sample, seed=0))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.tested >= least
