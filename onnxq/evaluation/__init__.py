"""Running models: sessions, metrics, the segment-replaying evaluator, latency."""

from __future__ import annotations

from onnxq.evaluation.evaluator import Evaluator, evaluate_file
from onnxq.evaluation.latency import Timing, interleaved
from onnxq.evaluation.metrics import Metrics, Score, hits_from_text, hits_to_text, logits_of
from onnxq.session import load_session, refuse_unknown_ops, surviving_qdq

__all__ = [
    "Evaluator",
    "Metrics",
    "Score",
    "Timing",
    "evaluate_file",
    "hits_from_text",
    "hits_to_text",
    "interleaved",
    "load_session",
    "logits_of",
    "refuse_unknown_ops",
    "surviving_qdq",
]
