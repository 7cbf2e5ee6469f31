"""A report as the figures need it: candidates as objects, units for a person, the range worth showing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq.metrics.reading import Reading
from onnxq.report.readings import main_reading
from onnxq.search.candidate import Candidate

__all__ = ["View", "finite"]


@dataclass(frozen=True)
class View:
    """A report as the figures need it.

    Attributes:
        candidates: the usable ones.
        front: those on the front, smallest first.
        metric: how its values are read.
        floor: the lowest value worth its space, in the unit shown.
        on_front: names of the front.
    """

    report: Mapping[str, Any]
    candidates: list[Candidate]
    front: list[Candidate]
    baseline: Candidate | None
    metric: Reading
    floor: float
    on_front: frozenset[str]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> View:
        kind = main_reading(report)
        everything = [Candidate.from_json(document) for document in report["candidates"]]
        usable = [c for c in everything if c.usable and finite(c.metrics.get(kind.name))]
        by_name = {c.name: c for c in usable}
        values = [kind.scale * c.metrics[kind.name] for c in usable]
        return cls(
            report,
            usable,
            [by_name[name] for name in report["front"] if name in by_name],
            Candidate.from_json(report["float"]) if report.get("float") else None,
            kind,
            _focus(values) if kind.percent and kind.higher_is_better else -math.inf,
            frozenset(report["front"]),
        )

    @property
    def label(self) -> str:
        """Of the metric's axis, unit included."""
        return self.metric.axis

    def value(self, candidate: Candidate) -> float | None:
        """The metric in the unit that is shown."""
        found = candidate.metrics.get(self.metric.name)
        return None if found is None else self.metric.scale * found

    def is_low(self, candidate: Candidate) -> bool:
        """Whether it lies below the part of the axis that is shown."""
        return (self.value(candidate) or 0.0) < self.floor

    def at(self, candidate: Candidate) -> tuple[float, float]:
        """Where it stands in the Pareto plot; what lies below the floor stands on it."""
        return candidate.bytes / 1e6, max(self.value(candidate) or 0.0, self.floor)

    def by_mode(self, candidates: Sequence[Candidate]) -> list[tuple[str, list[Candidate]]]:
        """(mode, its candidates), static first."""
        modes = sorted({c.mode for c in candidates}, key=lambda mode: (mode != "static", mode))
        return [(mode, [c for c in candidates if c.mode == mode]) for mode in modes]

    def spread(self, candidate: Candidate) -> float:
        """The standard error of the metric in the unit that is shown."""
        return self.metric.scale * candidate.stderr.get(self.metric.name, 0.0)


def finite(value: float | None) -> bool:
    """Whether there is a number to draw."""
    return value is not None and math.isfinite(value)


def _focus(values: Sequence[float]) -> float:
    """The lowest value worth its space: collapsed candidates would squeeze all others into one line."""
    if len(values) < 4:
        return -math.inf
    best, middle, worst = max(values), statistics.median(values), min(values)
    floor = best - max(5.0 * (best - middle), 5.0)
    return -math.inf if floor <= worst else float(math.floor(floor))
