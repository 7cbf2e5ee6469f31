"""How the metrics of a report or a comparison are read, by what the document itself says of them.

A run folder is data: a metric of the user's own is described there, and its code is not needed to show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import METRICS

__all__ = ["main_reading", "reading_in"]


def reading_in(document: Mapping[str, Any], name: str) -> Reading:
    """How to read the metric of that name; reports before 2026-12 describe none, and have onnxq's own."""
    described = document.get("metrics", {}).get(name)
    if described is not None:
        return Reading.from_json(name, described)
    return METRICS.get(name) or Reading.from_json(name, {})


def main_reading(document: Mapping[str, Any]) -> Reading:
    """How to read the metric that the run, or the runs, were judged by."""
    return reading_in(document, document["metric"])
