"""What a tune tells: its events, its result, what it belongs to, and when float itself looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq._version import __version__
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import metric_named
from onnxq.search.pareto import Pick
from onnxq.tuning.prepare import Prepared, model_hash

__all__ = ["Event", "TuneResult", "fingerprint_of", "goal_met", "sanity"]


@dataclass(frozen=True)
class Event:
    """What a progress display shows. phase: prepare, rank, measure, confirm, warn."""

    phase: str
    done: int
    total: int
    text: str
    best: str = ""


@dataclass
class TuneResult:
    """The end of a run. goal_met is None when no metric floor was asked for."""

    folder: Path
    candidates: list[Candidate]
    front: list[Candidate]
    picks: dict[str, Pick]
    baseline: Candidate
    metric: str
    finished: bool
    resumed: int
    summary: str
    goal_met: bool | None = None


def fingerprint_of(prepared: Prepared) -> dict[str, str]:
    """What must not change between the start of a run and its resumption."""
    return {
        "model": model_hash(prepared.model),
        "data": prepared.data.fingerprint(),
        "calibration data": prepared.calibration.fingerprint(),
        "onnxq version": __version__,
        **prepared.config.fingerprint(),
    }


def sanity(prepared: Prepared, baseline: Candidate) -> Prepared:
    """Warn when the float model is about as good as guessing: labels or preprocessing are wrong then."""
    top1, top5 = baseline.metrics.get("top1"), baseline.metrics.get("top5")
    if top1 is not None and top5 is not None and baseline.samples >= 50 and top1 < 0.15 and top5 < 0.5:
        return prepared.with_warning(
            f"the float model itself reaches only {100 * top1:.1f} % top-1 on this data: "
            "check --preprocess and the numbering of the labels before trusting any figure"
        )
    return prepared


def goal_met(floor: float, metric: str, members: Sequence[Candidate]) -> bool | None:
    """Whether a quantized member of the front reaches the metric floor; None where none was asked for."""
    if not floor:
        return None
    reached = [member for member in members if member.mode != "float" and metric in member.metrics]
    return any(metric_named(metric).gap(member.metrics[metric], floor) <= 0 for member in reached)
