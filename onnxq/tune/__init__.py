"""The main job: from one float model to a Pareto front of quantized ones."""

from __future__ import annotations

from onnxq.tune.build import build_candidate
from onnxq.tune.config import TuneConfig
from onnxq.tune.tuner import Event, TuneResult, tune

__all__ = ["Event", "TuneConfig", "TuneResult", "build_candidate", "tune"]
