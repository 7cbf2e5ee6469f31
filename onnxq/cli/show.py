"""The end of a run, for the terminal: the front as a table, the picks, where the report lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq.cli.terminal import megabytes, say, table, warn
from onnxq.metrics import Reading
from onnxq.report.readings import main_reading
from onnxq.search import Candidate

__all__ = ["print_report"]

_MOST_ROWS = 20


def _row(
    candidate: Candidate, metric: Reading, picks: dict[str, str], float_bytes: int, devices: list[str]
) -> list[str]:
    value = metric.format_spread(candidate.metrics.get(metric.name), candidate.stderr.get(metric.name))
    held = [candidate.latencies.get(name) for name in devices] if devices else [candidate.latency]
    latency = [f"{found.ratio:.2f}" if found else "" for found in held]
    smaller = f"{float_bytes / candidate.bytes:.2f}x" if candidate.bytes else ""
    left = str(candidate.float_layers) if candidate.mode != "float" else ""
    return [
        candidate.name,
        value,
        megabytes(candidate.bytes),
        smaller,
        *latency,
        left,
        picks.get(candidate.name, ""),
    ]


def print_report(report: dict[str, Any], folder: Path) -> None:
    """The front of a report (thinned out to what fits a screen), the three picks and the files."""
    metric = main_reading(report)
    by_name = {entry["name"]: Candidate.from_json(entry) for entry in report["candidates"]}
    baseline = Candidate.from_json(report["float"])
    picks: dict[str, str] = {}
    for pick in report["picks"]:
        picks[pick["candidate"]] = ", ".join(filter(None, (picks.get(pick["candidate"]), pick["name"])))
    members = [by_name[name] for name in report["front"] if name in by_name]
    shown = _thinned(members, picks)
    devices = list(baseline.latencies)
    latencies = [f"latency@{name}" for name in devices] or ["latency/float"]
    columns = ["candidate", metric.name, "size", "smaller", *latencies, "float layers", "pick"]
    rows = [_row(member, metric, picks, baseline.bytes, devices) for member in shown]
    if baseline.name not in {member.name for member in shown}:
        rows.append(_row(baseline, metric, picks, baseline.bytes, devices))
    if not any(row[4] for row in rows):
        columns, rows = _without(columns, 4), [_without(row, 4) for row in rows]
    table(columns, rows, right=range(1, len(columns) - 1))
    if len(shown) < len(members):
        say(f"{len(members) - len(shown)} more of the front stand in the report.")
    say()
    for pick in report["picks"]:
        say(f"{pick['candidate']}  {pick['reason']}", label=f"{pick['name']:<14}")
    say()
    say(report["summary"])
    say(f"report: {folder / 'report.html'}   models: {folder / 'front'}/")
    for text in report["warnings"]:
        warn(text)


def _without(row: list[str], index: int) -> list[str]:
    return [*row[:index], *row[index + 1 :]]


def _thinned(members: list[Candidate], picks: dict[str, str]) -> list[Candidate]:
    if len(members) <= _MOST_ROWS:
        return members
    step = (len(members) - 1) / (_MOST_ROWS - 1)
    kept = {round(index * step) for index in range(_MOST_ROWS)}
    return [member for index, member in enumerate(members) if index in kept or member.name in picks]
