"""Metrics: one file each, behind one interface; everything else asks the object."""

from __future__ import annotations

from onnxq.metrics.base import Metric, Outputs, SampleMetric, Values
from onnxq.metrics.hits import hits_from_text, hits_to_text
from onnxq.metrics.logits import check_usable, logits_of
from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import (
    METRICS,
    default_metric,
    headline_of,
    known_metrics,
    metric_text,
    metrics_beside,
    open_metric,
    reading_of,
)

__all__ = [
    "METRICS",
    "Metric",
    "Outputs",
    "Reading",
    "SampleMetric",
    "Values",
    "check_usable",
    "default_metric",
    "headline_of",
    "hits_from_text",
    "hits_to_text",
    "known_metrics",
    "logits_of",
    "metric_text",
    "metrics_beside",
    "open_metric",
    "reading_of",
]
