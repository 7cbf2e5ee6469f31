"""Searches, candidates, the front and the journal that remembers them."""

from __future__ import annotations

from onnxq.search.candidate import Candidate, Latency, candidate_key
from onnxq.search.journal import Journal, read_journal
from onnxq.search.objectives import Objective, parse_objectives
from onnxq.search.pareto import PICKS, Pick, front, hypervolume, pick_three

__all__ = [
    "PICKS",
    "Candidate",
    "Journal",
    "Latency",
    "Objective",
    "Pick",
    "candidate_key",
    "front",
    "hypervolume",
    "parse_objectives",
    "pick_three",
    "read_journal",
]
