"""A candidate: a policy with what was measured about it. Plain data, exact JSON round trip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxq.documents import (
    count,
    each,
    flag,
    integer,
    number,
    one_of,
    optional,
    plain_name,
    real,
    record,
    table,
    text,
)
from onnxq.files import canonical_json, sha256_bytes

__all__ = ["CANDIDATE", "LATENCY", "Candidate", "Latency", "candidate_key"]

_STATUSES = ("ok", "failed")


@dataclass(frozen=True)
class Latency:
    """Latency on one device, measured in turns with the float model so that both see the same weather.

    All times in milliseconds for one run; `ratio` is candidate / float (below 1: faster than float), and
    lies with about 95 % in `low` to `high` where these are known. `runs` is 0 where it is not measured but
    predicted.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    float_median_ms: float
    ratio: float
    runs: int
    low: float | None = None
    high: float | None = None


LATENCY = record(
    dict.fromkeys(("median_ms", "q1_ms", "q3_ms", "float_median_ms", "ratio"), number) | {"runs": count},
    dict.fromkeys(("low", "high"), optional(number)),
    closed=True,
)
"""What the JSON of a latency looks like."""

CANDIDATE = record(
    {
        "key": text,
        "name": plain_name,
        "index": integer,
        "strategy": text,
        "step": integer,
        "mode": text,
        "policy": record({}, {"layers": table(table(text))}),
    },
    {
        "changed": each(text),
        "status": one_of(*_STATUSES),
        "error": optional(text),
        "metrics": table(real),
        "stderr": table(real),
        "samples": count,
        "complete": flag,
        "bytes": count,
        "latency": optional(LATENCY),
        "latencies": table(LATENCY),
        "bops": optional(count),
        "sha256": optional(text),
    },
    closed=True,
)
"""What the JSON of a candidate looks like; its name names files of the run folder."""


@dataclass(frozen=True)
class Candidate:
    """One policy, measured.

    Attributes:
        key: `candidate_key` of everything its numbers depend on; its identity in the journal.
        name: short name, unique in a run (`static-003`).
        index: position in the run, in order of proposal.
        strategy: the search that proposed it (`ranking`).
        step: the strategy's own step (ranking: how many layers are left in float).
        mode: `static`, `dynamic`, `float`, ...
        policy: the policy as JSON, layer -> scheme; enough to build the candidate again.
        changed: the layers excluded so far, in order of exclusion.
        status: `ok` or `failed`; `error` says why it failed.
        metrics: metric -> value (top1, top5, agreement as fractions; sqnr in dB; mse of the logits).
        stderr: metric -> standard error of that value, same unit.
        samples: how many samples the metrics were measured on.
        complete: False where racing stopped early, so that the metrics are of a subset.
        bytes: size of the saved file, external data included.
        latency: on ONNX Runtime's CPU provider, or on the first device where the run asks for devices only;
            None where it was not measured.
        latencies: device -> latency on it.
        bops: bit operations of one sample; None where unknown.
        sha256: of the saved file; None where none was saved.
    """

    key: str
    name: str
    index: int
    strategy: str
    step: int
    mode: str
    policy: Mapping[str, Any]
    changed: tuple[str, ...] = ()
    status: str = "ok"
    error: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    complete: bool = True
    bytes: int = 0
    latency: Latency | None = None
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    bops: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise ValueError(f"candidate {self.name}: status is {self.status!r}, not one of {_STATUSES}")

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def float_layers(self) -> int:
        """Layers of the policy whose weights stay float."""
        layers = self.policy.get("layers", {})
        return sum(entry.get("weights", "float") == "float" for entry in layers.values())

    @property
    def crawls(self) -> bool:
        """Whether it takes more than twice as long as float, which no size makes up for."""
        return self.latency is not None and self.latency.ratio > 2.0

    @property
    def usable(self) -> bool:
        """Whether it may stand on a front: measured, and to the end."""
        return self.status == "ok" and self.complete

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; numbers that JSON lacks become the texts `nan`, `inf`, `-inf`."""
        document = asdict(self)
        document["changed"] = list(self.changed)
        document["metrics"] = {name: _encode(value) for name, value in self.metrics.items()}
        document["stderr"] = {name: _encode(value) for name, value in self.stderr.items()}
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Candidate:
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is missing, unknown or no number; names it.
        """
        CANDIDATE(document, "candidate")
        values = dict(document)
        try:
            values["changed"] = tuple(values.get("changed", ()))
            values["metrics"] = {name: float(value) for name, value in values.get("metrics", {}).items()}
            values["stderr"] = {name: float(value) for name, value in values.get("stderr", {}).items()}
            if values.get("latency") is not None:
                values["latency"] = Latency(**values["latency"])
            found = values.get("latencies", {}).items()
            values["latencies"] = {device: Latency(**entry) for device, entry in found}
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"candidate {values.get('name', '?')}: {error}") from error


def candidate_key(
    *,
    model: str,
    policy: Mapping[str, Any],
    data: str,
    metric: str,
    device: str,
    tool_version: str,
    **more: Any,
) -> str:
    """SHA-256 (hex) of everything a candidate's numbers depend on.

    `model` and `data` are content hashes. `more` takes whatever else changes the numbers (seed, mode,
    calibration); a key that lacks such a field would let a resumed run reuse a wrong number.
    """
    parts = {
        "model": model,
        "policy": policy,
        "data": data,
        "metric": metric,
        "device": device,
        "tool_version": tool_version,
        "more": more,
    }
    return sha256_bytes(canonical_json(parts).encode("utf-8"))


def _encode(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))
