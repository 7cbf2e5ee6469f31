"""Networks that label their own samples, and configurations of small tunes on them, shared by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.evaluation import load_session
from onnxq.tuning import TuneConfig

__all__ = ["by_bits", "write_labelled"]


def write_labelled(folder: Path, model: onnx.ModelProto, x: NDArray[np.float32]) -> None:
    """`net.onnx` and `data.npz` in `folder`: the samples x for its input `x`, labelled by itself."""
    onnx.save(model, folder / "net.onnx")
    logits = load_session(str(folder / "net.onnx"), threads=1).run(None, {"x": x})[0]
    np.savez(folder / "data.npz", x=x, y=logits.argmax(axis=1))


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
