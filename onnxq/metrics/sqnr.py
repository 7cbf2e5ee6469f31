"""sqnr: signal-to-quantization-noise ratio of the logits, 10 log10(sum float^2 / sum (model - float)^2)."""

from __future__ import annotations

import math

from onnxq.metrics.squares import SquaredErrors

__all__ = ["SQNR"]


class SQNR(SquaredErrors):
    """Signal-to-quantization-noise ratio of the logits in dB."""

    name = "sqnr"
    label = "SQNR of the logits"
    unit = "dB"
    digits = 1
    best = 60.0
    # About the precision of a double: an exact model has infinite SQNR, which no normalisation survives.
    ceiling = 300.0

    def compute(self) -> float:
        """Infinite without noise, minus infinite without signal, NaN before the first sample."""
        if not self.numbers:
            return math.nan
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal != 0 else -math.inf
