"""What a metric is: it takes the outputs of a model chunk by chunk, and gives one number in the end.

`Metric` is the whole interface. `SampleMetric` is the short way for metrics that are the mean of one number a
sample: those know their standard error, and can race.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from onnxq.metrics.reading import Reading
from passes.core.errors import DataError

__all__ = ["Metric", "Outputs", "SampleMetric", "Values"]

Outputs: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""The outputs of a model by name, in the model's order, each for one chunk of samples."""
Values: TypeAlias = npt.NDArray[Any]
"""One number, or one truth value, a sample [N]."""
_Self = TypeVar("_Self", bound="Metric")


class Metric(Reading, ABC):
    """A metric. The attributes of `Reading` say how its values are read; these say what it takes.

    Attributes:
        first_output_only: whether it reads nothing but the first output. Models of several outputs are then
            not run for the others, and the evaluator may reuse what it knows of a candidate's first layers.
        class_labels: whether its labels are numbers of classes, which must be below the number of logits.
        races: whether `compute` is the mean of `per_sample` and no sample's value can be better than `best`.
            A candidate's evaluation may then be stopped as soon as it cannot win any more.
        beside: names of metrics that are measured and reported beside this one, for what they tell.
    """

    first_output_only: bool = False
    class_labels: bool = False
    races: bool = False
    beside: tuple[str, ...] = ()

    def fresh(self: _Self) -> _Self:
        """An accumulator of this metric that has seen nothing. The metric itself is never updated."""
        return copy.deepcopy(self)

    @abstractmethod
    def update(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> None:
        """Take one more chunk of samples.

        Args:
            outputs: all outputs of the model by name, the batch on the axis where the model has it. They may
                be the first one alone where the metric is `first_output_only`.
            targets: the labels of the chunk, int64 [n]; None for unlabelled data.
            reference: the float model's outputs for the same samples; None where nothing is compared.

        Raises:
            DataError: outputs, labels and reference do not fit each other.
        """

    @abstractmethod
    def compute(self) -> float:
        """The value over everything so far."""

    def stderr(self) -> float | None:
        """The standard error of `compute`, in the same unit; None where none is known."""
        return None

    def per_sample(self) -> Values | None:
        """The value of each sample in the order of the updates; None where samples have none."""
        return None

    def costs(self, values: Values) -> npt.NDArray[np.float64]:
        """`cost` of each of these values."""
        found = np.asarray(values, np.float64)
        if self.ceiling is not None:
            found = np.minimum(found, self.ceiling)
        return -found if self.higher_is_better else found

    def certainty(self, outputs: Outputs) -> npt.NDArray[Any] | None:
        """How sure of each sample [n] the float model is; None where nothing can be said.

        Racing looks at unsure samples first, since those are the ones that candidates lose.
        """
        return None

    def doubt(self, values: Mapping[str, float], samples: int) -> str | None:
        """What is suspicious about the float model's own values, for a warning; None where nothing is."""
        return None


class SampleMetric(Metric):
    """The mean of one number, or one truth value, a sample."""

    def __init__(self) -> None:
        self._parts: list[Values] = []

    @property
    def samples(self) -> int:
        """How many samples it has seen."""
        return sum(map(len, self._parts))

    @abstractmethod
    def score(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> Values:
        """The value of each sample of this chunk [n]; see `update`. `samples` of them came before."""

    def update(self, outputs: Outputs, targets: Any, reference: Outputs | None) -> None:
        part = np.asarray(self.score(outputs, targets, reference))
        if self.races and part.size and self.costs(part).min() < self.cost(self.best):
            raise DataError(
                f"metric {self.name}: gives a sample a value that is better than {self.best:g}, its best"
            )
        self._parts.append(part)

    def compute(self) -> float:
        values = self.per_sample()
        return float(values.mean()) if len(values) else math.nan

    def stderr(self) -> float | None:
        """Binomial for truth values, else from the spread of the samples; None for a single number."""
        values = self.per_sample()
        if values.dtype == np.bool_:
            rate = self.compute()
            return math.sqrt(max(rate * (1 - rate), 0.0) / len(values)) if len(values) else None
        return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None

    def per_sample(self) -> Values:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.bool_)
