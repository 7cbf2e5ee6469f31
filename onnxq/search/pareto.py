"""The front, three picks from it, and its hypervolume; sorting and decision making by pymoo.

The knee is found by the achievement scalarization function on the normalised front. pymoo's
HighTradeoffPoints is not used: by its source it silences all warnings of the process for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.decomposition.aasf import AASF
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import reading_of
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import Objective

__all__ = ["PICKS", "Pick", "front", "hypervolume", "pick_three"]

PICKS = ("best-accuracy", "smallest", "balanced")

_Costs = npt.NDArray[np.float64]

_RHO = 0.05
"""Weight of the sum of costs beside the worst one: a few bytes do not outweigh a point of accuracy."""

_SLOWEST_RATIO = 2.0
"""Reference point of the latency ratio: a model slower than float may still be worth its size."""


@dataclass(frozen=True)
class Pick:
    """A candidate worth building, and in one sentence why."""

    name: str
    candidate: Candidate
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "candidate": self.candidate.name, "reason": self.reason}


def front(
    candidates: Sequence[Candidate], objectives: Sequence[Objective], metric: str | Reading
) -> list[Candidate]:
    """The candidates that no other one beats or equals in everything, smallest file first.

    Failed and incomplete candidates, and those that lack one of the objectives, cannot stand on it. Of
    candidates that are equal in every objective the first stays.
    """
    kind = reading_of(metric)
    distinct: dict[tuple[float, ...], Candidate] = {}
    for candidate in candidates:
        costs = _costs(candidate, objectives, kind)
        if candidate.usable and costs is not None:
            distinct.setdefault(costs, candidate)
    if not distinct:
        return []
    members = list(distinct.values())
    chosen = NonDominatedSorting().do(np.array(list(distinct)), only_non_dominated_front=True)
    return sorted((members[int(i)] for i in chosen), key=lambda member: (member.bytes, member.index))


def pick_three(
    members: Sequence[Candidate],
    objectives: Sequence[Objective],
    metric: str | Reading,
    *,
    reference: Candidate | None = None,
    tolerance: float | None = None,
) -> dict[str, Pick]:
    """Name three points of a front: `best-accuracy`, `smallest`, `balanced`.

    They are three different candidates wherever the front has three, and never the float model as long as
    it has anything else. Empty for an empty front.

    Args:
        members: the front, as `front` returns it.
        reference: the float model; without it, losses are told against the best of the front.
        tolerance: the loss of the metric (own unit, a fraction for accuracies) that `smallest` may cost;
            by default the metric's own, or none.
    """
    pool = [member for member in members if member.mode != "float"] or list(members)
    if not pool:
        return {}
    kind = reading_of(metric)
    tolerance = kind.tolerance if tolerance is None else tolerance
    best = min(pool, key=lambda member: (kind.cost(member.metrics[kind.name]), member.bytes, member.index))
    base = best if reference is None or kind.name not in reference.metrics else reference
    picks = {"best-accuracy": Pick("best-accuracy", best, _best_reason(best, base, kind))}

    rest = [member for member in pool if member is not best] or pool
    smallest, reason = _smallest(rest, base, kind, tolerance)
    picks["smallest"] = Pick("smallest", smallest, reason)

    open_to = [member for member in rest if member is not smallest] or pool
    open_to = [member for member in open_to if not member.crawls] or open_to
    knee = _knee(pool, open_to, objectives, kind)
    picks["balanced"] = Pick("balanced", knee, _balanced_reason(knee, base, kind, objectives))
    return picks


def hypervolume(
    members: Sequence[Candidate], objectives: Sequence[Objective], metric: str | Reading, reference: Candidate
) -> float:
    """The share (0 to 1) of the trade-off space that the front covers; more is better.

    The reference point is fixed by the float model alone (nothing kept of the metric, float's bytes and
    BOPs, twice float's latency), so the number never falls as candidates are added and compares runs of one
    model. What does not beat that point adds nothing.
    """
    kind = reading_of(metric)
    low, high = np.array([_bounds(objective, kind, reference) for objective in objectives]).T
    costs = [c for c in (_costs(member, objectives, kind) for member in members) if c is not None]
    if not costs or bool(np.any(high <= low)):
        return 0.0
    scaled = np.clip((np.array(costs) - low) / (high - low), 0.0, 1.0)
    return float(HV(ref_point=np.ones(len(objectives)))(scaled))


def _costs(candidate: Candidate, objectives: Sequence[Objective], kind: Reading) -> tuple[float, ...] | None:
    costs = [objective.cost(candidate, kind) for objective in objectives]
    return None if any(cost is None for cost in costs) else tuple(cost for cost in costs if cost is not None)


def _bounds(objective: Objective, kind: Reading, reference: Candidate) -> tuple[float, float]:
    if objective.kind == "metric":
        return kind.cost(kind.best), kind.cost(kind.worst)
    if objective.kind == "latency":
        return 0.0, _SLOWEST_RATIO
    return 0.0, objective.cost(reference, kind) or 0.0


def _smallest(
    rest: Sequence[Candidate], base: Candidate, kind: Reading, tolerance: float | None
) -> tuple[Candidate, str]:
    def size(member: Candidate) -> tuple[float, ...]:
        return (member.bytes, kind.cost(member.metrics[kind.name]), member.index)

    overall = min(rest, key=size)
    if tolerance is None:
        return overall, f"Smallest file of the front, {_size(overall, base)}."
    allowed = kind.format_difference(tolerance)
    # The allowance is a decimal that people type; a rounding error of 1e-12 must not cost the exact match.
    within = [m for m in rest if kind.gap(m.metrics[kind.name], base.metrics[kind.name]) <= tolerance + 1e-9]
    if within:
        chosen = min(within, key=size)
        than = "float" if base.mode == "float" else base.name
        return chosen, f"Smallest file that stays within {allowed} of {than}, {_size(chosen, base)}."
    lost = _loss(overall, base, kind)
    return overall, f"Smallest file of the front; nothing else stays within {allowed}: {lost}."


def _knee(
    pool: Sequence[Candidate], open_to: Sequence[Candidate], objectives: Sequence[Objective], kind: Reading
) -> Candidate:
    """The point of `open_to` whose worst normalised cost is least; normalised over the whole `pool`.

    Of points whose worst costs hardly differ, the one of the least sum.
    """
    table = {member.key: _costs(member, objectives, kind) for member in pool}
    costs: _Costs = np.array([table[member.key] for member in pool])
    low, span = costs.min(axis=0), np.ptp(costs, axis=0)
    span[span == 0] = 1.0
    scaled = (np.array([table[member.key] for member in open_to]) - low) / span
    weights = np.full(len(objectives), 1.0 / len(objectives))
    return open_to[int(np.argmin(AASF(rho=_RHO).do(scaled, weights)))]


def _best_reason(best: Candidate, base: Candidate, kind: Reading) -> str:
    value = kind.format(best.metrics[kind.name])
    return f"Best {kind.title} of the front, {value}{_against(best, base, kind)}."


def _balanced_reason(knee: Candidate, base: Candidate, kind: Reading, objectives: Sequence[Objective]) -> str:
    axes = " nor ".join(kind.title if o.kind == "metric" else o.value for o in objectives)
    return f"Knee of the front, where neither {axes} gives way: {_loss(knee, base, kind)}."


def _against(member: Candidate, base: Candidate, kind: Reading) -> str:
    return "" if base is member else f" ({_loss(member, base, kind)})"


def _loss(member: Candidate, base: Candidate, kind: Reading) -> str:
    than = "float" if base.mode == "float" else base.name
    return kind.loss(member.metrics[kind.name], base.metrics[kind.name], than)


def _size(member: Candidate, base: Candidate) -> str:
    megabytes = f"{member.bytes / 1e6:.2f} MB"
    if base.mode != "float" or not member.bytes:
        return megabytes
    return f"{megabytes} or {base.bytes / member.bytes:.1f}x smaller than float"
