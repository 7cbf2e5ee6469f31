"""Sums of squares of the logits and of their difference from the float model's, for metrics of them.

Logits that either model has ruled out by -inf are left out on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.metrics.base import Metric, Outputs
from onnxq.metrics.logits import BESIDE, check_pair, first_logits

__all__ = ["SquaredErrors"]


class SquaredErrors(Metric):
    """What metrics of the squared error of the logits share.

    Attributes:
        error: sum of the squared differences. signal: of the float model's squared logits. numbers: how many.
    """

    needs_reference = True
    first_output_only = True
    beside = BESIDE

    def __init__(self) -> None:
        self.error = 0.0
        self.signal = 0.0
        self.numbers = 0
        self.samples = 0

    def update(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> None:
        assert reference is not None  # needs_reference
        logits, wanted = first_logits(outputs), first_logits(reference)
        check_pair(logits, wanted, self.samples, same=reference is outputs)
        finite = np.isfinite(wanted) & np.isfinite(logits)
        apart = logits[finite] - wanted[finite]
        self.error += float(np.square(apart, dtype=np.float64).sum())
        self.signal += float(np.square(wanted[finite], dtype=np.float64).sum())
        self.numbers += int(finite.sum())
        self.samples += len(logits)
