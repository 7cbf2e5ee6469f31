"""Metrics, accumulated chunk by chunk: top-1, top-5, agreement, logit MSE and SQNR.

The first output of the model counts as its logits, flattened to [N, classes].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.errors import DataError

__all__ = ["Metrics", "Score", "check_usable", "hits_from_text", "hits_to_text", "logits_of"]

Logits = npt.NDArray[np.float32]
Hits = npt.NDArray[np.bool_]


def logits_of(outputs: list[Any]) -> Logits:
    """The first output as float32 [N, classes]."""
    first = np.asarray(outputs[0], np.float32)
    return first.reshape(first.shape[0], -1) if first.ndim > 1 else first.reshape(1, -1)


def check_usable(logits: Logits, whose: str, first: int = 0) -> None:
    """Raise DataError for logits that rank no class: NaN among them, or no finite largest one.

    -inf beside finite logits is a class that the model rules out, and fine. whose: the model, in the message.
    first: the number of the first sample.
    """
    top = logits.max(axis=1) if logits.shape[1] else np.zeros(len(logits), np.float32)
    bad = ~np.isfinite(top)  # the maximum of a row that holds NaN is NaN
    if bad.any():
        raise DataError(
            f"{whose} gives NaN or infinity for sample {first + int(bad.argmax())}, which ranks no class; "
            "check the model and the preprocessing"
        )


@dataclass(frozen=True)
class Score:
    """Values and standard errors over `samples` samples; `hits`: per sample whether the headline was right.

    The headline is top-1 for labelled data, agreement with float otherwise.
    """

    values: dict[str, float]
    stderr: dict[str, float]
    samples: int
    hits: Hits

    @property
    def headline(self) -> str:
        return "top1" if "top1" in self.values else "agreement"


@dataclass
class Metrics:
    """A running evaluation. `update` takes the logits of one chunk in sample order."""

    samples: int = 0
    squared_error: float = 0.0
    squared_reference: float = 0.0
    numbers: int = 0
    _top1: list[Hits] = field(default_factory=list)
    _top5: list[Hits] = field(default_factory=list)
    _agree: list[Hits] = field(default_factory=list)

    def update(self, logits: Logits, labels: npt.NDArray[np.int64] | None, reference: Logits | None) -> None:
        """logits, reference (the float model's): float32 [n, classes]; labels: int64 [n].

        Raises DataError when a label is no class of the model, or when rows and labels do not pair up.
        """
        if labels is not None and len(labels) != len(logits):
            raise DataError(
                f"the model gave {len(logits)} rows of logits for {len(labels)} labels; its first output "
                "must be [batch, classes]"
            )
        if reference is not None and reference.shape != logits.shape:
            raise DataError(
                f"the model's logits are {logits.shape}, those of the float model {reference.shape}"
            )
        if reference is not None and reference is not logits:
            check_usable(reference, "the float model", self.samples)
        check_usable(logits, "the model", self.samples)
        self.samples += len(logits)
        best = logits.argmax(axis=1)
        if labels is not None:
            classes = logits.shape[1]
            if labels.size and (labels.min() < 0 or labels.max() >= classes):
                wrong = int(labels[(labels < 0) | (labels >= classes)][0])
                raise DataError(
                    f"label {wrong} is out of range: the model has {classes} outputs, 0 to {classes - 1}"
                )
            self._top1.append(best == labels)
            depth = min(5, classes)
            top = np.argpartition(logits, -depth, axis=1)[:, -depth:]
            self._top5.append((top == labels[:, None]).any(axis=1))
        if reference is not None:
            self._agree.append(best == reference.argmax(axis=1))
            finite = np.isfinite(reference) & np.isfinite(logits)
            apart = logits[finite] - reference[finite]
            self.squared_error += float(np.square(apart, dtype=np.float64).sum())
            self.squared_reference += float(np.square(reference[finite], dtype=np.float64).sum())
            self.numbers += int(finite.sum())

    def score(self) -> Score:
        """Everything so far. Standard errors are binomial; MSE and SQNR have none."""
        values: dict[str, float] = {}
        stderr: dict[str, float] = {}
        for name, parts in (("top1", self._top1), ("top5", self._top5), ("agreement", self._agree)):
            if parts:
                rate = float(np.concatenate(parts).mean())
                values[name] = rate
                stderr[name] = math.sqrt(max(rate * (1 - rate), 0.0) / self.samples)
        if self.numbers:
            values["mse"] = self.squared_error / self.numbers
            values["sqnr"] = _decibels(self.squared_reference, self.squared_error)
        hits = self._top1 or self._agree
        return Score(values, stderr, self.samples, np.concatenate(hits) if hits else np.zeros(0, np.bool_))


def _decibels(signal: float, noise: float) -> float:
    """Ratio in dB: infinite without noise, minus infinite without signal, NaN where either is."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal != 0 else -math.inf


def hits_to_text(hits: Hits) -> str:
    """One hexadecimal digit per four samples, for the journal."""
    return np.packbits(hits).tobytes().hex()


def hits_from_text(text: str, samples: int) -> Hits:
    """The inverse of `hits_to_text`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=samples).astype(np.bool_)
