"""Configurations of small tunes, shared by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxq.tuning import TuneConfig

__all__ = ["by_bits"]


def by_bits(workspace: Path, strategy: str, **options: Any) -> TuneConfig:
    """Weights alone, by a strategy that spends bits, for `net.onnx` and `data.npz` in `workspace`."""
    settings: dict[str, Any] = {
        "model": str(workspace / "net.onnx"),
        "data": str(workspace / "data.npz"),
        "calibration_samples": 40,
        "objectives": "metric,bytes",
        "metric": "mse",
        "weights": ("gse2", "gse4", "gse8"),
        "modes": ("weights",),
        "threads": 1,
        "front": 4,
        "permutations": 2,
        "generations": 2,
        "strategy": strategy,
        **options,
    }
    return TuneConfig(**settings)
