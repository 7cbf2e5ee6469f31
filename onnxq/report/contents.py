"""What a report says, as one plain JSON value; everything shown is computed here, nothing in the template."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import reading_of
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import LATENCY_RESOLUTION, Objective
from onnxq.search.pareto import Pick, front, hypervolume, pick_three

__all__ = ["REPORT_SCHEMA", "LayerError", "environment", "headline", "make_report"]

REPORT_SCHEMA = 1
_PACKAGES = ("onnxq", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class LayerError:
    """Relative errors of one layer in the fully quantized network; None where it was not measured.

    Attributes:
        qdq_error: distance of the layer's own output before and after quantization.
        xmodel_error: distance of the layer's output in the quantized network from that in the float one.
        score: the combined, normalised error that ranks the layers (0 to 1).
    """

    name: str
    op_type: str
    qdq_error: float | None = None
    xmodel_error: float | None = None
    score: float | None = None


def make_report(
    *,
    model: str,
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    metric: str | Reading,
    baseline: Candidate,
    beside: Sequence[Reading] = (),
    layers: Sequence[LayerError] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    finished: bool = False,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """The report of a run at this moment; valid with any number of candidates, none included.

    Args:
        model: the model's name for a person.
        metric: what the search was judged by; a name of onnxq's own, or how to read another.
        baseline: the float model, measured like a candidate (mode `float`).
        beside: how to read the other metrics of the candidates.
        layers: in the order of the graph.
        config: the resolved configuration (plain JSON).
        environment: see `environment`.
        warnings: what the reader must know before believing a number (random calibration, no VNNI).
        notes: what the reader may want to know.
        finished: False while the search goes on.
        tolerance: see `pick_three`.

    Raises:
        UserError: the metric is unknown.
    """
    kind = reading_of(metric)
    members = front(candidates, objectives, kind)
    picks = pick_three(members, objectives, kind, reference=baseline, tolerance=tolerance)
    return {
        "schema": REPORT_SCHEMA,
        "model": model,
        "metric": kind.name,
        "metrics": {reading.name: reading.to_json() for reading in (kind, *beside)},
        "objectives": [objective.value for objective in objectives],
        "finished": finished,
        "summary": headline(picks, baseline, kind, candidates, tolerance=tolerance),
        "float": baseline.to_json(),
        "candidates": [candidate.to_json() for candidate in candidates],
        "front": [member.name for member in members],
        "picks": [pick.to_json() for pick in picks.values()],
        "hypervolume": hypervolume(members, objectives, kind, baseline),
        "layers": [asdict(layer) for layer in layers],
        "config": dict(config or {}),
        "environment": dict(environment or {}),
        "warnings": list(warnings),
        "notes": list(notes),
    }


def environment(cpu_flags: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Versions, platform and CPU flags, for the report: integer kernels answer differently elsewhere."""
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_flags": sorted(cpu_flags),
        **more,
    }


def headline(
    picks: Mapping[str, Pick],
    baseline: Candidate,
    metric: str | Reading,
    candidates: Sequence[Candidate] = (),
    *,
    tolerance: float | None = None,
) -> str:
    """The result in one sentence: the smallest pick within tolerance, against float."""
    if not picks:
        failed = [candidate for candidate in candidates if candidate.status == "failed"]
        if failed:
            return f"No candidate could be measured so far; {failed[0].name} failed: {failed[0].error}"
        return "No candidate has been measured yet."
    kind = reading_of(metric)
    name = kind.name
    tolerance = kind.tolerance if tolerance is None else tolerance
    chosen = picks["balanced"].candidate
    if tolerance is not None and name in baseline.metrics:
        pool = [pick.candidate for pick in picks.values()]
        within = [c for c in pool if kind.gap(c.metrics[name], baseline.metrics[name]) <= tolerance + 1e-9]
        # The sentence that people quote: not the one that is small and takes many times as long.
        within = [c for c in within if not c.crawls] or within
        chosen = min(within, key=lambda c: c.bytes, default=picks["best-accuracy"].candidate)
    if chosen.mode == "float":
        return "No quantized candidate stands on the front: float is at least as small and as good as each."
    facts = " and ".join(fact for fact in (_smaller(chosen, baseline), _faster(chosen)) if fact)
    quality = f"{kind.format(chosen.metrics[name])} {kind.within_sentence}"
    # What compares with float says nothing of float itself.
    if name in baseline.metrics and not kind.needs_reference:
        quality += f" (float {kind.format(baseline.metrics[name])})"
    return (
        f"{chosen.name} is {facts} than float at {quality}." if facts else f"{chosen.name} reaches {quality}."
    )


def _smaller(candidate: Candidate, baseline: Candidate) -> str:
    if not candidate.bytes or not baseline.bytes:
        return ""
    ratio = baseline.bytes / candidate.bytes
    return f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x larger"


def _faster(candidate: Candidate) -> str:
    """Says nothing where the clock cannot tell the two apart."""
    ratio = candidate.latency.ratio if candidate.latency else 1.0
    if abs(ratio - 1) < LATENCY_RESOLUTION or ratio <= 0:
        return ""
    return f"{1 / ratio:.1f}x faster" if ratio < 1 else f"{ratio:.1f}x slower"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
