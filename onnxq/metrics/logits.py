"""Logits: the first output of a model, flattened to [N, classes]; what metrics of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.metrics.base import Outputs
from passes.core.errors import DataError

__all__ = [
    "BESIDE",
    "Logits",
    "check_labels",
    "check_pair",
    "check_usable",
    "first_logits",
    "logits_of",
    "margin",
]

Logits = npt.NDArray[np.float32]

BESIDE = ("top1", "top5", "agreement", "mse", "sqnr")
"""What is measured together wherever the metric is one of these: each costs nothing beside the others."""


def logits_of(outputs: Sequence[Any]) -> Logits:
    """The first output as float32 [N, classes]."""
    first = np.asarray(outputs[0], np.float32)
    return first.reshape(first.shape[0], -1) if first.ndim > 1 else first.reshape(1, -1)


def first_logits(outputs: Outputs) -> Logits:
    """The same of outputs by name."""
    return logits_of([next(iter(outputs.values()))])


def margin(logits: Logits) -> Logits:
    """How far the largest logit of each sample is above the second [N]."""
    ranked = np.sort(logits, axis=1)
    return ranked[:, -1] - ranked[:, -2] if logits.shape[1] > 1 else ranked[:, -1]


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


def check_pair(logits: Logits, reference: Logits, first: int, *, same: bool) -> None:
    """Raise DataError where a model's logits and the float model's cannot be compared.

    same: whether they are the same, of the float model itself. first: see `check_usable`.
    """
    if reference.shape != logits.shape:
        raise DataError(f"the model's logits are {logits.shape}, those of the float model {reference.shape}")
    if not same:
        check_usable(reference, "the float model", first)
    check_usable(logits, "the model", first)


def check_labels(logits: Logits, labels: npt.NDArray[np.int64], first: int) -> None:
    """Raise DataError where a label is not a class of the model, or where rows and labels do not pair up."""
    if len(labels) != len(logits):
        raise DataError(
            f"the model gave {len(logits)} rows of logits for {len(labels)} labels; its first output "
            "must be [batch, classes]"
        )
    check_usable(logits, "the model", first)
    classes = logits.shape[1]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = int(labels[(labels < 0) | (labels >= classes)][0])
        raise DataError(f"label {wrong} is out of range: the model has {classes} outputs, 0 to {classes - 1}")
