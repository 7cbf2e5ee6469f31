"""Training: from an ONNX file through torch and back. torch is imported when a training starts, not
before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.training.config import TrainConfig, require_torch
from onnxq.training.plots import draw
from onnxq.training.reconstruction import BlockRounder

if TYPE_CHECKING:
    from onnxq.data import Dataset
    from onnxq.training.run import Outcome
    from onnxq.training.trainer import Event
    from passes.graph.model import Model

__all__ = ["BlockRounder", "TrainConfig", "draw", "require_torch", "start"]


def start(
    config: TrainConfig,
    model: Model,
    data: Dataset,
    validation: Dataset | None = None,
    *,
    folder: Path | None = None,
    progress: Callable[[Event], None] | None = None,
) -> Outcome:
    """Train, or continue from the checkpoint in `folder`. Raises UserError without torch, and for bad
    input."""
    require_torch()
    from onnxq.training.run import Run
    from onnxq.training.search import search

    run = Run(config, model, data, validation, folder=folder, progress=progress)
    return search(run) if config.method == "smpq" else run()
