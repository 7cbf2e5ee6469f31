"""What a search optimises: metrics (quality) and objectives (quality, bytes, latency, BOPs)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.runners.device import parse_device
from onnxq.search.candidate import Candidate, Latency
from passes.errors import UserError

__all__ = [
    "LATENCY_RESOLUTION",
    "METRICS",
    "Metric",
    "Objective",
    "format_metric",
    "metric_named",
    "named_objective",
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


@dataclass(frozen=True)
class Objective:
    """One axis of the trade-off; every one is turned into a cost, so that less is better.

    Attributes:
        kind: metric, bytes, latency or bops.
        device: of a latency on a named device, as in `latency@tvm:llvm`; empty for ONNX Runtime on this CPU.
    """

    kind: str
    device: str = ""

    METRIC: ClassVar[Objective]
    BYTES: ClassVar[Objective]
    LATENCY: ClassVar[Objective]
    BOPS: ClassVar[Objective]

    @property
    def value(self) -> str:
        """As it is written in `--objectives`."""
        return f"{self.kind}@{self.device}" if self.device else self.kind

    def latency_of(self, candidate: Candidate) -> Latency | None:
        """The candidate's latency that this objective is about."""
        return candidate.latencies.get(self.device) if self.device else candidate.latency

    def latency_ratio(self, candidate: Candidate) -> float | None:
        """The candidate's latency over float's; None where it was not measured."""
        latency = self.latency_of(candidate)
        return None if latency is None else latency.ratio

    def cost(self, candidate: Candidate, metric: str) -> float | None:
        """The value to minimise, or None where the candidate lacks a finite one.

        Latency is the ratio to float on a grid of `LATENCY_RESOLUTION`: two candidates that the clock
        cannot tell apart are equal here, so noise never puts one of them on a front.
        """
        raw: float | None
        if self.kind == "metric":
            value = candidate.metrics.get(metric)
            raw = None if value is None else metric_named(metric).cost(value)
        elif self.kind == "bytes":
            raw = float(candidate.bytes)
        elif self.kind == "latency":
            raw = self.latency_ratio(candidate)
        else:
            raw = None if candidate.bops is None else float(candidate.bops)
        if raw is None or not math.isfinite(raw):
            return None
        if self.kind == "latency":
            return round(round(raw / LATENCY_RESOLUTION) * LATENCY_RESOLUTION, 9)
        return raw


Objective.METRIC, Objective.BYTES = Objective("metric"), Objective("bytes")
Objective.LATENCY, Objective.BOPS = Objective("latency"), Objective("bops")
_KINDS = ("metric", "bytes", "latency", "bops")


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """`"metric,bytes,latency@tvm:llvm"` as objectives, in that order.

    Raises:
        UserError: an unknown or repeated name, a device that is none, or fewer than two objectives.
    """
    found: list[Objective] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, at, device = part.partition("@")
        kind = kind.lower()
        if kind not in _KINDS:
            raise UserError(f"unknown objective {kind!r} in {text!r}{_near(kind, _KINDS)}")
        if at and kind != "latency":
            raise UserError(f"objective {part!r}: only latency depends on a device")
        if at:
            device = parse_device(device).text
        objective = Objective(kind, device)
        if objective in found:
            raise UserError(f"objective {part!r} stands twice in {text!r}")
        found.append(objective)
    if len(found) < 2:
        raise UserError(f"a trade-off needs at least two of {', '.join(_KINDS)}, not {text!r}")
    return tuple(found)


def named_objective(text: str) -> Objective:
    """The inverse of `Objective.value`."""
    kind, _, device = text.partition("@")
    return Objective(kind, device)


def _near(name: str, known: Sequence[str] | dict[str, Metric]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{suggestion} there are {', '.join(known)}"
