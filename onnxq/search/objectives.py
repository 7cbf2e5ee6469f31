"""What a search optimises: metrics (quality) and objectives (quality, bytes, latency, BOPs)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from onnxq.search.candidate import Candidate
from passes.errors import UserError

__all__ = [
    "LATENCY_RESOLUTION",
    "METRICS",
    "Metric",
    "Objective",
    "format_metric",
    "metric_named",
    "parse_objectives",
]

LATENCY_RESOLUTION = 0.05
"""Differences of the latency ratio below this are noise of the machine, not gain."""

_SQNR_CEILING_DB = 300.0
"""About the precision of a double: an exact model has infinite SQNR, which no normalisation survives."""


@dataclass(frozen=True)
class Metric:
    """How a metric is read.

    Attributes:
        label: for axes and tables.
        higher_is_better: False for errors.
        percent: a fraction that is shown in percent.
        worst: the value that counts as nothing kept (for the hypervolume's reference point).
        best: the value that counts as everything kept.
        tolerance: the loss against float that people usually accept, in the metric's own unit; None where
            there is no such number.
    """

    name: str
    label: str
    higher_is_better: bool = True
    percent: bool = False
    worst: float = 0.0
    best: float = 1.0
    tolerance: float | None = None

    def cost(self, value: float) -> float:
        """The value to minimise (unit of the metric, sign turned where higher is better)."""
        if self.name == "sqnr":
            value = min(value, _SQNR_CEILING_DB)
        return -value if self.higher_is_better else value

    def gap(self, value: float, reference: float) -> float:
        """How much worse `value` is than `reference`, in the metric's own unit; negative where better."""
        return self.cost(value) - self.cost(reference)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1 accuracy", percent=True, tolerance=0.01),
        Metric("top5", "top-5 accuracy", percent=True, tolerance=0.01),
        Metric("agreement", "agreement with float", percent=True, tolerance=0.01),
        Metric("sqnr", "SQNR of the logits (dB)", best=60.0),
        Metric("mse", "MSE of the logits", higher_is_better=False, worst=1.0, best=0.0),
    )
}


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise UserError(f"unknown metric {name!r}{_near(name, METRICS)}") from None


def format_metric(metric: str, value: float | None, *, digits: int = 1) -> str:
    """A metric's value for a person: `91.2 %`, `34.1 dB`, `0.00213`."""
    if value is None or math.isnan(value):
        return "n/a"
    if metric in METRICS and METRICS[metric].percent:
        return f"{100 * value:.{digits}f} %"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f} dB" if metric == "sqnr" else f"{value:.3g}"


class Objective(Enum):
    """One axis of the trade-off; every one is turned into a cost, so that less is better."""

    METRIC = "metric"
    BYTES = "bytes"
    LATENCY = "latency"
    BOPS = "bops"

    def cost(self, candidate: Candidate, metric: str) -> float | None:
        """The value to minimise, or None where the candidate lacks a finite one.

        Latency is the ratio to float on a grid of `LATENCY_RESOLUTION`: two candidates that the clock
        cannot tell apart are equal here, so noise never puts one of them on a front.
        """
        raw: float | None
        if self is Objective.METRIC:
            value = candidate.metrics.get(metric)
            raw = None if value is None else metric_named(metric).cost(value)
        elif self is Objective.BYTES:
            raw = float(candidate.bytes)
        elif self is Objective.LATENCY:
            raw = None if candidate.latency is None else candidate.latency.ratio
        else:
            raw = None if candidate.bops is None else float(candidate.bops)
        if raw is None or not math.isfinite(raw):
            return None
        if self is Objective.LATENCY:
            return round(round(raw / LATENCY_RESOLUTION) * LATENCY_RESOLUTION, 9)
        return raw


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """`"metric,bytes,latency"` as objectives, in that order.

    Raises:
        UserError: an unknown or repeated name, or fewer than two objectives.
    """
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    known = [objective.value for objective in Objective]
    for position, name in enumerate(names):
        if name not in known:
            raise UserError(f"unknown objective {name!r} in {text!r}{_near(name, known)}")
        if name in names[:position]:
            raise UserError(f"objective {name!r} stands twice in {text!r}")
    if len(names) < 2:
        raise UserError(f"a trade-off needs at least two of {', '.join(known)}, not {text!r}")
    return tuple(Objective(name) for name in names)


def _near(name: str, known: Sequence[str] | dict[str, Metric]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{suggestion} there are {', '.join(known)}"
