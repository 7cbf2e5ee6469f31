"""Racing: a candidate's evaluation stops when a smaller one is known to be at least as good.

Exact: samples come in an order in which those that a rival may still lose on stand first, and a candidate is
given up only where it cannot be better than the rival, whatever the unseen samples bring.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.evaluation import Score
from onnxq.metrics.base import Metric, Values
from onnxq.metrics.hits import hits_from_text, hits_to_text
from onnxq.search.candidate import Candidate
from onnxq.tuning.latencies import Records
from onnxq.tuning.prepare import Prepared
from passes.core.errors import ResumeError

__all__ = ["Race", "extrapolated", "is_dominated"]

# With fewer samples a stop saves nothing.
_LEAST_SAMPLES = 100


class Race:
    """Which samples every finished candidate got right, and whom a new one runs against.

    stages: numbers of samples after which a candidate may be given up; empty where candidates do not race.
    headline: the metric that samples are known by, where there is one; only it can be raced on.
    """

    def __init__(self, prepared: Prepared, metric: Metric, headline: Metric | None, journal: Records) -> None:
        search, samples = prepared.config.search_options, len(prepared.data)
        objectives = search.objectives
        self._metric, self._journal = metric, journal
        self._by_bops = any(objective.value == "bops" for objective in objectives)
        self._hits: dict[str, Values] = {}
        # There must be nothing that a hopeless metric could be traded against.
        timed = any(objective.kind == "latency" for objective in objectives)
        known = headline is not None and headline.name == metric.name
        runs = search.racing and not timed and known and samples >= _LEAST_SAMPLES
        self.stages = [samples * eighth // 8 for eighth in range(1, 8)] if runs else []

    def stop(self) -> None:
        """No more races: every candidate is measured to its end."""
        self.stages = []

    def know(self, key: str, hits: Values) -> None:
        """Which samples a candidate got right, for this process."""
        self._hits[key] = hits

    def record(self, key: str, hits: Values) -> None:
        """The same, for later processes too."""
        self.know(key, hits)
        self._journal.append("hits", key, hits_to_text(hits))

    def rival(self, size: int, bops: int, rivals: Sequence[Candidate]) -> Values | None:
        """Hits of the best finished candidate that is no larger and no costlier; None where there is none."""
        better = [
            r
            for r in rivals
            if r.usable
            and r.bytes <= size
            and (not self._by_bops or (r.bops or 0) <= bops)
            and self._metric.name in r.metrics
        ]
        if not better:
            return None
        return self.hits(
            min(better, key=lambda r: (self._metric.cost(r.metrics[self._metric.name]), r.index))
        )

    def hits(self, candidate: Candidate) -> Values | None:
        """Which samples a finished candidate got right, as racing compares them; None where it is not
        known.
        """
        if candidate.key not in self._hits:
            text = self._journal.get("hits", candidate.key)
            if text is None:
                return None
            if 4 * len(text) < candidate.samples:
                raise ResumeError(
                    f"the journal's hits of candidate {candidate.name} are cut off; use `fresh`"
                )
            self._hits[candidate.key] = hits_from_text(text, candidate.samples)
        return self._hits[candidate.key]


def is_dominated(score: Score, rival: Values, metric: Metric) -> bool:
    """Whether a candidate cannot be better than a smaller one, whatever the rest brings.

    Exact: all that it can still gain is what the rival lost on the unseen samples, against the best value
    that a sample can have, and the samples on which float loses come first in the evaluator's order.
    """
    seen = score.samples
    ours, theirs = metric.costs(score.hits), metric.costs(rival)
    behind = ours.sum() - theirs[:seen].sum()
    left = (theirs[seen:] - metric.cost(metric.best)).sum()
    return bool(left <= behind)


def extrapolated(score: Score, reference: Score) -> dict[str, float]:
    """The metric over all samples, the unseen ones counted as float has them (they are the sure ones).

    Other metrics of a subset that was chosen for being fragile would mislead, and are left out.
    """
    unseen = reference.hits[score.samples :]
    return {score.headline: float(score.hits.sum() + unseen.sum()) / len(reference.hits)}
