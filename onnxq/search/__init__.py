"""Searches, candidates, the front and the journal that remembers them."""

from __future__ import annotations

from onnxq.search.candidate import Candidate, Latency, candidate_key
from onnxq.search.journal import Journal, read_journal
from onnxq.search.objectives import METRICS, Metric, Objective, format_metric, metric_named, parse_objectives
from onnxq.search.pareto import PICKS, Pick, front, hypervolume, pick_three

__all__ = [
    "METRICS",
    "PICKS",
    "Candidate",
    "Journal",
    "Latency",
    "Metric",
    "Objective",
    "Pick",
    "candidate_key",
    "format_metric",
    "front",
    "hypervolume",
    "metric_named",
    "parse_objectives",
    "pick_three",
    "read_journal",
]
