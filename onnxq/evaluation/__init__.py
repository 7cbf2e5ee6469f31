"""Running models: sessions, scores, the segment-replaying evaluator, latency."""

from __future__ import annotations

from onnxq.evaluation.evaluator import Evaluator, evaluate_file
from onnxq.evaluation.latency import Timing, interleaved
from onnxq.evaluation.scoring import Score, Scorer
from onnxq.session import load_session, refuse_unknown_ops, surviving_qdq

__all__ = [
    "Evaluator",
    "Score",
    "Scorer",
    "Timing",
    "evaluate_file",
    "interleaved",
    "load_session",
    "refuse_unknown_ops",
    "surviving_qdq",
]
