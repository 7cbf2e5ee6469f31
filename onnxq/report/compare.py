"""Several runs side by side: their fronts in one plot, their picks in one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from onnxq.files import atomic_write, atomic_write_json, make_folder
from onnxq.metrics.reading import Reading
from onnxq.report.readings import main_reading
from onnxq.report.report import data_uri, load_report, page
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import Objective, named_objective
from onnxq.search.pareto import front
from passes.core.errors import UserError

__all__ = ["compare", "write_comparison"]

_SCHEMA = 1


def compare(folders: Sequence[str | PathLike[str]]) -> dict[str, Any]:
    """The comparison of run folders as plain JSON: a row for every pick of every run, and every front.

    Raises:
        UserError: a folder has no readable report, no folder was named, or the runs were judged by different
            metrics (their fronts cannot share an axis).
    """
    reports = {os.fspath(folder): load_report(folder) for folder in folders}
    metrics = sorted({report["metric"] for report in reports.values()})
    if not reports:
        raise UserError("no run folder to compare")
    if len(metrics) > 1:
        raise UserError(f"these runs cannot be compared: they were judged by {' and '.join(metrics)}")
    rows = [row for run, report in reports.items() for row in _rows(run, report)]
    devices = _devices(reports)
    return {
        "schema": _SCHEMA,
        "metric": metrics[0],
        "metrics": {metrics[0]: main_reading(next(iter(reports.values()))).to_json()},
        "summary": f"{_summary(reports)} {devices}".rstrip(),
        "warnings": [f"{run}: {text}" for run, report in reports.items() for text in report["warnings"]],
        "rows": rows,
        "fronts": {run: _points(report) for run, report in reports.items()},
    }


def write_comparison(folders: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> dict[str, Any]:
    """Write `compare.json`, `compare.png` and `compare.html` into the folder `out`; returns the comparison.

    Raises:
        UserError: see `compare`.
        OutputError: a file cannot be written.
    """
    from onnxq.report.overlay import overlay_figure, png

    comparison = compare(folders)
    folder: Path = make_folder(out)
    atomic_write_json(folder / "compare.json", comparison)
    picture = png(overlay_figure(comparison))
    atomic_write(folder / "compare.png", picture)
    figures = [("compare.png", "The fronts of all runs; stars are the float models.", data_uri(picture))]
    html = page(title="onnxq compare", comparison=comparison, figures=figures)
    atomic_write(folder / "compare.html", html)
    return comparison


def _rows(run: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    metric = report["metric"]
    by_name = {document["name"]: Candidate.from_json(document) for document in report["candidates"]}
    baseline = Candidate.from_json(report["float"])
    start = _point(baseline, metric)[1] if metric in baseline.metrics else None
    rows = []
    for pick in report["picks"]:
        candidate = by_name[pick["candidate"]]
        rows.append(
            {
                "run": run,
                "model": report["model"],
                "metric": metric,
                "float": start,
                "candidates": len(by_name),
                "front": len(report["front"]),
                "hypervolume": report["hypervolume"],
                "pick": pick["name"],
                "candidate": candidate.name,
                "value": _point(candidate, metric)[1],
                "bytes": candidate.bytes,
                "smaller": baseline.bytes / candidate.bytes if candidate.bytes else None,
                "latency": candidate.latency.ratio if candidate.latency else None,
            }
        )
    return rows


def _points(report: dict[str, Any]) -> dict[str, Any]:
    """A run's front in the plane of size and metric as [bytes, value], and its float model."""
    kind, metric = main_reading(report), report["metric"]
    candidates = [Candidate.from_json(document) for document in report["candidates"]]
    baseline = Candidate.from_json(report["float"])
    plane = front(candidates, (Objective.METRIC, Objective.BYTES), kind)
    timed = {objective.value: _timed(candidates, objective, kind) for objective in _latencies(report)}
    return {
        "latency": {name: points for name, points in timed.items() if points},
        "front": [_point(member, metric) for member in plane],
        "float": _point(baseline, metric) if metric in baseline.metrics else None,
    }


def _latencies(report: dict[str, Any]) -> list[Objective]:
    """The latencies that a run was searched by."""
    return [
        objective for text in report["objectives"] if (objective := named_objective(text)).kind == "latency"
    ]


def _timed(candidates: list[Candidate], objective: Objective, kind: Reading) -> list[list[Any]]:
    """A run's front in the plane of latency and metric as [ratio to float, value, name], fastest first."""
    plane = [
        member for member in front(candidates, (Objective.METRIC, objective), kind) if member.mode != "float"
    ]
    points = [
        [objective.latency_ratio(member), _point(member, kind.name)[1], member.name] for member in plane
    ]
    return sorted(points, key=lambda point: float(point[0]))


def _point(candidate: Candidate, metric: str) -> list[Any]:
    return [candidate.bytes, candidate.to_json()["metrics"][metric]]


def _devices(reports: dict[str, dict[str, Any]]) -> str:
    """Whether the best candidate is the same on every device, in one sentence; empty for fewer than two.

    Best is the fastest of those that stay within the metric's tolerance of float.
    """
    if len({report["model"] for report in reports.values()}) > 1:
        return ""
    best: dict[str, str] = {}
    for report in reports.values():
        candidates = [Candidate.from_json(document) for document in report["candidates"]]
        for objective in _latencies(report):
            found = _fastest(
                candidates, Candidate.from_json(report["float"]), objective, main_reading(report)
            )
            if found is not None:
                best[objective.value] = found.name
    if len(best) < 2:
        return ""
    told = ", ".join(f"{name} by {objective}" for objective, name in best.items())
    same = len(set(best.values())) == 1
    return f"The best candidate is {'the same' if same else 'another'} on each device: {told}."


def _fastest(
    candidates: list[Candidate], baseline: Candidate, objective: Objective, kind: Reading
) -> Candidate | None:
    metric = kind.name
    if kind.tolerance is None or metric not in baseline.metrics:
        return None
    allowed = kind.tolerance + 1e-9
    good = [
        candidate
        for candidate in candidates
        if candidate.usable
        and candidate.mode != "float"
        and objective.latency_ratio(candidate) is not None
        and kind.gap(candidate.metrics[metric], baseline.metrics[metric]) <= allowed
    ]
    return min(good, key=lambda candidate: objective.latency_ratio(candidate) or 0.0, default=None)


def _summary(reports: dict[str, dict[str, Any]]) -> str:
    best = max(reports, key=lambda run: float(reports[run]["hypervolume"]))
    models = {report["model"] for report in reports.values()}
    objectives = {tuple(report["objectives"]) for report in reports.values()}
    if len(reports) > 1 and len(models) == len(objectives) == 1:
        return f"Of {len(reports)} runs of {models.pop()}, {best} covers most of the trade-off."
    return f"{len(reports)} runs of {models.pop() if len(models) == 1 else f'{len(models)} models'}."
