"""What a report.json looks like: a run folder is data, and nothing in it is believed before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.documents import (
    anything,
    count,
    each,
    flag,
    number,
    optional,
    plain_name,
    record,
    table,
    text,
)
from onnxq.metrics.reading import READING
from onnxq.metrics.registry import METRICS
from onnxq.search.candidate import CANDIDATE, Candidate
from onnxq.search.objectives import parse_objectives
from passes.core.errors import UserError

__all__ = ["checked_report"]

_LAYER = record(
    {"name": text, "op_type": text} | dict.fromkeys(("qdq_error", "xmodel_error", "score"), optional(number))
)
_REPORT = record(
    {
        "schema": count,
        "model": text,
        "metric": plain_name,
        "objectives": each(text),
        "finished": flag,
        "summary": text,
        "float": CANDIDATE,
        "candidates": each(CANDIDATE),
        "front": each(plain_name),
        "picks": each(record({"name": plain_name, "candidate": plain_name, "reason": text})),
        "hypervolume": number,
        "layers": each(_LAYER),
        "config": table(anything),
        "environment": table(anything),
        "warnings": each(text),
        "notes": each(text),
    },
    {"metrics": table(READING)},
)


def checked_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with every field of its candidates; raises ValueError that says where it is not a report."""
    _REPORT(report, "")
    try:
        parse_objectives(",".join(report["objectives"]))
    except UserError as error:
        raise ValueError(str(error)) from None
    if report["metric"] not in {*METRICS, *report.get("metrics", {})}:
        raise ValueError(f"its metric '{report['metric']}' is neither onnxq's own nor described in it")
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    for pick in report["picks"]:
        found = by_name.get(pick["candidate"])
        if found is None or report["metric"] not in found.get("metrics", {}):
            raise ValueError(f"its pick '{pick['name']}' names a candidate without a {report['metric']}")
    whole = [Candidate.from_json(candidate).to_json() for candidate in report["candidates"]]
    return {**report, "candidates": whole, "float": Candidate.from_json(report["float"]).to_json()}
