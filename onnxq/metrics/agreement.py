"""agreement: the share of samples whose largest logit is the float model's."""

from __future__ import annotations

from typing import Any

from onnxq.metrics.base import Outputs, SampleMetric, Values
from onnxq.metrics.logits import BESIDE, check_pair, first_logits, margin

__all__ = ["Agreement"]


class Agreement(SampleMetric):
    """Agreement of the model's decisions with the float model's."""

    name = "agreement"
    label = "agreement with float"
    unit = "%"
    digits = 1
    tolerance = 0.01
    needs_reference = True
    first_output_only = True
    races = True
    beside = BESIDE

    def score(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> Values:
        assert reference is not None  # needs_reference
        logits, wanted = first_logits(outputs), first_logits(reference)
        check_pair(logits, wanted, self.samples, same=reference is outputs)
        hits: Values = logits.argmax(axis=1) == wanted.argmax(axis=1)
        return hits

    def certainty(self, outputs: Outputs) -> Values:
        return margin(first_logits(outputs))
