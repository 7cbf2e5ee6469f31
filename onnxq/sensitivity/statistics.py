"""What a variant's logits say against float's, accumulated sample by sample."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.metrics.logits import Logits

__all__ = ["Accumulator", "Sensitivity"]

Array = npt.NDArray[np.float64]
# The error of a sample whose logits are NaN or infinite.
UNUSABLE = 1e30


@dataclass(frozen=True)
class Sensitivity:
    """What one variant costs, measured on `samples` samples.

    mse: mean squared error of the logits. stderr: its standard error over the samples (the spread of a
    subset's mean). kl: mean Kullback-Leibler divergence of the softmax, float's the reference, in nats.
    agreement: share of samples whose top-1 is float's. sqnr: of the layer's own output in dB, None where it
    is not at hand (layers in subgraphs, several layers at once) or infinite.
    """

    key: str
    mse: float
    stderr: float
    kl: float
    agreement: float
    samples: int
    sqnr: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "key"}

    @classmethod
    def from_json(cls, key: str, document: dict[str, Any]) -> Sensitivity:
        return cls(key, **document)


def _bounded(errors: Array) -> Array:
    """Errors that are NaN or infinite as ones that no search will accept, which JSON can hold."""
    return np.where(np.isfinite(errors), errors, UNUSABLE)


def _log_softmax(logits: Logits) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


class Accumulator:
    """Per-sample errors of one variant. reference: float's logits [N, classes]."""

    def __init__(self, reference: Logits) -> None:
        self._reference = reference
        self._log = _log_softmax(reference)
        self._squares: list[Array] = []
        self._kl = 0.0
        self._agree = 0
        self.samples = 0

    def restart(self) -> None:
        """Forget the variant; the reference stays."""
        self._squares, self._kl, self._agree, self.samples = [], 0.0, 0, 0

    def update(self, logits: Logits) -> None:
        """Logits [n, classes] of the next n samples."""
        begin, end = self.samples, self.samples + len(logits)
        wanted, log = self._reference[begin:end], self._log[begin:end]
        with np.errstate(invalid="ignore", over="ignore"):
            self._squares.append(_bounded(np.square(logits.astype(np.float64) - wanted).mean(axis=1)))
            self._kl += float(_bounded((np.exp(log) * (log - _log_softmax(logits))).sum(axis=1)).sum())
        self._agree += int((logits.argmax(axis=1) == wanted.argmax(axis=1)).sum())
        self.samples = end

    def settled(self, precision: float) -> bool:
        """Whether the standard error of the MSE is within `precision` of it; never for precision 0."""
        if precision <= 0:
            return False
        mean, spread = self._moments()
        return spread <= precision * mean

    def _moments(self) -> tuple[float, float]:
        errors = np.concatenate(self._squares)
        count = len(errors)
        spread = float(errors.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return float(errors.mean()), spread

    def result(self, key: str, sqnr: float | None = None) -> Sensitivity:
        mean, spread = self._moments()
        count = self.samples
        stderr = spread if math.isfinite(spread) else mean
        return Sensitivity(key, mean, stderr, max(self._kl / count, 0.0), self._agree / count, count, sqnr)
