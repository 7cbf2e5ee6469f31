"""The model of a candidate: built under a policy, weighed in bytes and in bit operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxq.data import Dataset
from onnxq.rounding import DataRounder
from onnxq.tuning.groups import RoundingOptions
from onnxq.tuning.prepare import RecordedRanges
from passes.core.base import Context
from passes.graph.model import Model, is_large, on_disk, serialize
from passes.policy import Policy
from passes.quantize import Quantize

__all__ = ["build_model", "make_rounder", "policy_bops", "saved_bytes"]


def build_model(
    model: Model,
    policy: Policy,
    ranges: RecordedRanges,
    rounder: DataRounder | None = None,
    rounding: Any = "nearest",
) -> Model:
    """The prepared model under a policy. Deterministic: same inputs, same bytes.

    rounder: sees the calibration set; needed for any `rounding` but nearest.
    """
    context = Context(check=False, ranges=ranges, rounder=rounder)
    return dataclasses.replace(Quantize.of(policy), rounding=rounding)(model, context).model


def make_rounder(rounding: RoundingOptions, calibration: Dataset) -> DataRounder | None:
    """What rounds the weights of candidates; None where that looks at no data.

    On one thread, so that a candidate has the same bytes on any number of cores.
    """
    if not rounding.sees_data:
        return None
    return DataRounder(calibration, damping=rounding.damping, seed=rounding.seed, threads=1)


def saved_bytes(model: Model) -> int:
    """Bytes of the model as saved, external data included."""
    if not is_large(model.proto):
        return len(serialize(model))
    with on_disk(model) as path:
        return sum(file.stat().st_size for file in path.parent.iterdir())


def policy_bops(counts: Mapping[str, int], policy: Policy) -> int:
    """Bit operations of one sample: sum over the layers of MACs * `LayerPolicy.bit_product` (SMPQ)."""
    return sum(count * policy[name].bit_product for name, count in counts.items())
