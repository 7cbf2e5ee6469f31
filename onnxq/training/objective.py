"""The task's loss: cross-entropy with labels, divergence from a teacher (Hinton et al. 2015), or both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Objective"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Objective:
    """distill: share of the teacher's part, 0 to 1. temperature: of both distributions in that part."""

    distill: float = 0.0
    temperature: float = 4.0
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor | None, soft: Tensor | None) -> Tensor:
        """Mean loss; logits and soft [N, classes], labels int64 [N], needed only where distill < 1."""
        logits = logits.float()
        loss = torch.zeros((), device=logits.device)
        if self.distill < 1 and labels is not None:
            loss = (1 - self.distill) * functional.cross_entropy(
                logits, labels, label_smoothing=self.smoothing
            )
        if self.distill > 0 and soft is not None:
            t = self.temperature
            ours, theirs = functional.log_softmax(logits / t, 1), functional.log_softmax(soft.float() / t, 1)
            loss = loss + self.distill * t * t * functional.kl_div(
                ours, theirs, reduction="batchmean", log_target=True
            )
        return loss
