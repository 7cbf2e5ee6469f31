"""The main job: from one float model to a Pareto front of quantized ones."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from onnxq.tune.build import build_candidate
from onnxq.tune.config import TuneConfig
from onnxq.tune.tuner import Event, TuneResult, tune

__all__ = ["Event", "TuneConfig", "TuneResult", "build_candidate", "tune"]


class _Callable(ModuleType):
    """Importing this package makes it the attribute `tune` of onnxq, where users expect the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> TuneResult:
        return tune(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
