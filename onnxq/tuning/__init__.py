"""The main job: from one float model to a Pareto front of quantized ones."""

from __future__ import annotations

from onnxq.tuning.build import build_candidate
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.outcome import Event, TuneResult
from onnxq.tuning.tuner import tune

__all__ = ["Event", "TuneConfig", "TuneResult", "build_candidate", "tune"]
