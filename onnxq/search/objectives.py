"""What a search optimises: quality by a metric (onnxq/metrics), bytes, latency, BOPs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import reading_of
from onnxq.runners import parse_device
from onnxq.search.candidate import Candidate, Latency
from passes.core.errors import UserError

__all__ = [
    "LATENCY_RESOLUTION",
    "Objective",
    "named_objective",
    "parse_objectives",
]

LATENCY_RESOLUTION = 0.05
"""Differences of the latency ratio below this are noise of the machine, not gain."""


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

    def cost(self, candidate: Candidate, metric: str | Reading) -> float | None:
        """The value to minimise, or None where the candidate lacks a finite one.

        Latency is the ratio to float on a grid of `LATENCY_RESOLUTION`: two candidates that the clock
        cannot tell apart are equal here, so noise never puts one of them on a front.
        """
        raw: float | None
        if self.kind == "metric":
            kind = reading_of(metric)
            value = candidate.metrics.get(kind.name)
            raw = None if value is None else kind.cost(value)
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


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{suggestion} there are {', '.join(known)}"
