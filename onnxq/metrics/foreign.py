"""Metrics that do not derive from `Metric`: any object with a name, `update` and `compute`."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.metrics.base import Metric, Outputs, Values
from onnxq.metrics.reading import Reading
from passes.core.errors import UserError

__all__ = ["Foreign", "looks_like_a_metric"]

_ATTRIBUTES = (*Reading.__annotations__, *Metric.__annotations__)


def looks_like_a_metric(held: Any) -> bool:
    """Whether it has what cannot be left out."""
    return isinstance(getattr(held, "name", None), str) and all(
        callable(getattr(held, method, None)) for method in ("update", "compute")
    )


class Foreign(Metric):
    """Such an object as a Metric; of the attributes and methods those that it has, else the defaults."""

    def __init__(self, held: Any) -> None:
        if not looks_like_a_metric(held):
            raise UserError(
                f"{type(held).__name__} is not a metric: it needs a name, update(outputs, targets, reference)"
                " and compute(); see CONTRIBUTING.md, how to write a metric"
            )
        self.held = held
        for name in _ATTRIBUTES:
            if hasattr(held, name):
                setattr(self, name, getattr(held, name))

    def update(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> None:
        self.held.update(outputs, targets, reference)

    def compute(self) -> float:
        return float(self.held.compute())

    def stderr(self) -> float | None:
        found = self.held.stderr() if hasattr(self.held, "stderr") else None
        return None if found is None else float(found)

    def per_sample(self) -> Values | None:
        found = self.held.per_sample() if hasattr(self.held, "per_sample") else None
        return None if found is None else np.asarray(found)
