"""The options of a training, parsed: each group is what one part of it needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.policy import LayerPolicy, Policy, Scheme

__all__ = ["FeedOptions", "PruningOptions", "SchemeOptions", "SearchOptions", "StepOptions", "TargetOptions"]


@dataclass(frozen=True)
class FeedOptions:
    """How samples come: how many a step, and whether they are cropped and mirrored at random."""

    batch: int
    crop: bool
    flip: bool
    seed: int


@dataclass(frozen=True)
class TargetOptions:
    """What is learned. distill: share of the float network's soft labels at `temperature` in the loss."""

    distill: float
    temperature: float


@dataclass(frozen=True)
class StepOptions:
    """How steps are taken, and how long. precision: None chooses by the device. stop_s: 0 for no stop."""

    epochs: float
    lr: float
    momentum: float
    decay: float
    warm_up: float
    optimizer: Literal["sgd", "adamw"]
    precision: Literal["float32", "bfloat16"] | None
    compile: bool
    seed: int
    checkpoint_s: float
    stop_s: float
    validate: int


@dataclass(frozen=True)
class SchemeOptions:
    """What layers are trained at: one choice for all, or a policy. quantizer: of integer weights.

    ranges: how those of quantized activations are learned.
    """

    choice: LayerPolicy
    policy: Policy | None
    quantizer: Literal["lsq", "roundclamp", "dorefa"]
    ranges: Literal["lsq", "pact"]

    @property
    def activations(self) -> Scheme:
        return self.choice.activations


@dataclass(frozen=True)
class PruningOptions:
    """Of msq, see onnxq/training/msq.py. share: of the steps, in which bits go."""

    compression: float
    share: float
    rounds: int
    lam: float
    alpha: float
    strength: Literal["gradient", "plain"]
    learned: bool


@dataclass(frozen=True)
class SearchOptions:
    """Of smpq. bops: as a share of uniform 8/8. share: of the epochs, in which the supernet is trained."""

    bits: tuple[int, ...]
    bops: float
    share: float
    updates: int
    permutations: int
