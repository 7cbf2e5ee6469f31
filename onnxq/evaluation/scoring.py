"""The score of a model: the metrics of a run, fed together and chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from onnxq.metrics.base import Metric, Outputs, Values
from onnxq.metrics.registry import headline_of, is_own
from onnxq.plugins import guarded

__all__ = ["Score", "Scorer"]

T = TypeVar("T")


def _asked(metric: Metric, action: Callable[[], T]) -> T:
    """What a metric gives; what the user's own code raises is a UserError that names the metric."""
    return action() if is_own(metric) else guarded(f"metric {metric.name}", action)


@dataclass(frozen=True)
class Score:
    """Values and standard errors over `samples` samples.

    Attributes:
        values: metric -> value. stderr: metric -> standard error, of those that know one.
        hits: per sample the value of the headline [samples]: for accuracies whether it was right.
        headline: name of the first metric that can race; empty, and no hits, where none can.
    """

    values: dict[str, float]
    stderr: dict[str, float]
    samples: int
    hits: Values
    headline: str = ""


class Scorer:
    """A running evaluation; `update` takes the outputs of one chunk in sample order."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = [metric.fresh() for metric in metrics]
        self._headline = headline_of(self._metrics)
        self.samples = 0

    def update(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> None:
        """See `Metric.update`. The rows of the first output are the samples."""
        for metric in self._metrics:
            _asked(metric, partial(metric.update, outputs, targets, reference))
        first = next(iter(outputs.values()))
        self.samples += first.shape[0] if first.ndim > 1 else 1

    def score(self) -> Score:
        """Everything so far."""
        values = {metric.name: float(_asked(metric, metric.compute)) for metric in self._metrics}
        spreads = {metric.name: _asked(metric, metric.stderr) for metric in self._metrics}
        stderr = {name: float(spread) for name, spread in spreads.items() if spread is not None}
        hits = None if self._headline is None else _asked(self._headline, self._headline.per_sample)
        name = self._headline.name if self._headline is not None and hits is not None else ""
        return Score(values, stderr, self.samples, np.zeros(0, np.bool_) if hits is None else hits, name)
