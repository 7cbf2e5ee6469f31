"""mse: the mean squared error of the logits against the float model's."""

from __future__ import annotations

import math

from onnxq.metrics.squares import SquaredErrors

__all__ = ["MSE"]


class MSE(SquaredErrors):
    """Mean squared error of the logits."""

    name = "mse"
    label = "MSE of the logits"
    higher_is_better = False
    worst = 1.0
    best = 0.0

    def compute(self) -> float:
        return self.error / self.numbers if self.numbers else math.nan
