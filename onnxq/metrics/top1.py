"""top1: the share of samples whose largest logit is that of the label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.metrics.base import Outputs, SampleMetric, Values
from onnxq.metrics.logits import BESIDE, check_labels, first_logits, margin

__all__ = ["Top1"]


class Top1(SampleMetric):
    """Top-1 accuracy of the logits."""

    name = "top1"
    label = "top-1 accuracy"
    short = "top-1"
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
        hits: Values = logits.argmax(axis=1) == targets
        return hits

    def certainty(self, outputs: Outputs) -> Values:
        return margin(first_logits(outputs))

    def doubt(self, values: Mapping[str, float], samples: int) -> str | None:
        """A float model that is about as good as guessing has wrong labels or wrong preprocessing."""
        own, five = values.get(self.name), values.get("top5")
        if own is None or five is None or samples < 50 or own >= 0.15 or five >= 0.5:
            return None
        return (
            f"the float model itself reaches only {100 * own:.1f} % top-1 on this data: "
            "check `preprocess` and the numbering of the labels before trusting any figure"
        )
