"""top5: the share of samples whose label is among the five largest logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.metrics.base import Outputs, SampleMetric, Values
from onnxq.metrics.logits import BESIDE, check_labels, first_logits

__all__ = ["Top5"]

_DEPTH = 5


class Top5(SampleMetric):
    """Top-5 accuracy of the logits; of all of them where there are fewer classes."""

    name = "top5"
    label = "top-5 accuracy"
    short = "top-5"
    unit = "%"
    digits = 1
    tolerance = 0.01
    needs_labels = True
    first_output_only = True
    class_labels = True
    races = True
    beside = BESIDE

    def score(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> Values:
        logits = first_logits(outputs)
        check_labels(logits, targets, self.samples)
        depth = min(_DEPTH, logits.shape[1])
        top = np.argpartition(logits, -depth, axis=1)[:, -depth:]
        hits: Values = (top == targets[:, None]).any(axis=1)
        return hits
