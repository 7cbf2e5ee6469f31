"""What a tune tells: its events, its result, what it belongs to, and when float itself looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq._version import __version__
from onnxq.metrics.base import Metric
from onnxq.metrics.reading import Reading
from onnxq.search.candidate import Candidate
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


def sanity(prepared: Prepared, metrics: Sequence[Metric], baseline: Candidate) -> Prepared:
    """Warn of what the metrics find suspicious about the float model: it may be about as good as guessing."""
    found = [metric.doubt(baseline.metrics, baseline.samples) for metric in metrics]
    for text in filter(None, found):
        prepared = prepared.with_warning(text)
    return prepared


def goal_met(floor: float, metric: Reading, members: Sequence[Candidate]) -> bool | None:
    """Whether a quantized member of the front reaches the metric floor; None where none was asked for."""
    if not floor:
        return None
    reached = [member for member in members if member.mode != "float" and metric.name in member.metrics]
    return any(metric.gap(member.metrics[metric.name], floor) <= 0 for member in reached)
