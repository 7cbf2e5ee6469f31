"""onnxq: one float ONNX model in, a Pareto front of quantized ones out.

    import onnxq as oq

    model = oq.load("model.onnx")
    small = oq.parse_recipe("simplify | fold_batchnorm")(model).model

Names are imported when they are first used, so that `import onnxq` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq._version import __version__ as __version__
    from onnxq.allocation import Problem as Problem
    from onnxq.allocation import ilp_front as ilp_front
    from onnxq.allocation.ilp import ilp as ilp
    from onnxq.allocation.threshold import threshold as threshold
    from onnxq.calibration import CalibratedRanges as CalibratedRanges
    from onnxq.data import Dataset as Dataset
    from onnxq.data import Preprocess as Preprocess
    from onnxq.evaluation import Score as Score
    from onnxq.evaluation import load_session as load_session
    from onnxq.hub import fetch as fetch
    from onnxq.inspection import describe as describe
    from onnxq.metrics import Metric as Metric
    from onnxq.metrics import Outputs as Outputs
    from onnxq.metrics import SampleMetric as SampleMetric
    from onnxq.proof import save as save
    from onnxq.public import calibrate as calibrate
    from onnxq.public import evaluate as evaluate
    from onnxq.public import open_dataset as open_dataset
    from onnxq.public import quantize as quantize
    from onnxq.report import load_report as load_report
    from onnxq.tuning import TuneConfig as TuneConfig
    from onnxq.tuning import TuneResult as TuneResult
    from onnxq.tuning import build_candidate as build_candidate
    from onnxq.tuning import tune as tune
    from onnxq.tuning.sensitivities import SensitivityTable as SensitivityTable
    from onnxq.tuning.sensitivities import sensitivities as sensitivities
    from passes import FLOAT as FLOAT
    from passes import Context as Context
    from passes import Exclude as Exclude
    from passes import Layer as Layer
    from passes import LayerPolicy as LayerPolicy
    from passes import Model as Model
    from passes import Pass as Pass
    from passes import PassResult as PassResult
    from passes import Policy as Policy
    from passes import Quantize as Quantize
    from passes import Scheme as Scheme
    from passes import Sequential as Sequential
    from passes import Smooth as Smooth
    from passes import UserError as UserError
    from passes import find_layers as find_layers
    from passes import load as load
    from passes import load_policy as load_policy
    from passes import load_recipe as load_recipe
    from passes import parse_recipe as parse_recipe
    from passes import select_layers as select_layers
    from passes.fold_batchnorm import FoldBatchNorm as FoldBatchNorm
    from passes.golden.text import GoldenMismatch as GoldenMismatch
    from passes.golden.text import canonical_text as canonical_text
    from passes.golden.text import check_golden as check_golden
    from passes.simplify import Simplify as Simplify

__all__ = [
    "FLOAT",
    "CalibratedRanges",
    "Context",
    "Dataset",
    "Exclude",
    "FoldBatchNorm",
    "GoldenMismatch",
    "Layer",
    "LayerPolicy",
    "Metric",
    "Model",
    "Outputs",
    "Pass",
    "PassResult",
    "Policy",
    "Preprocess",
    "Problem",
    "Quantize",
    "SampleMetric",
    "Scheme",
    "Score",
    "SensitivityTable",
    "Sequential",
    "Simplify",
    "Smooth",
    "TuneConfig",
    "TuneResult",
    "UserError",
    "__version__",
    "build_candidate",
    "calibrate",
    "canonical_text",
    "check_golden",
    "describe",
    "evaluate",
    "fetch",
    "find_layers",
    "ilp",
    "ilp_front",
    "load",
    "load_policy",
    "load_recipe",
    "load_report",
    "load_session",
    "open_dataset",
    "parse_recipe",
    "quantize",
    "save",
    "select_layers",
    "sensitivities",
    "threshold",
    "tune",
]

_PLACES = {
    "onnxq._version": ("__version__",),
    "onnxq.allocation": ("Problem", "ilp", "ilp_front", "threshold"),
    "onnxq.calibration": ("CalibratedRanges",),
    "onnxq.data": ("Dataset", "Preprocess"),
    "onnxq.evaluation": ("Score", "load_session"),
    "onnxq.hub": ("fetch",),
    "onnxq.inspection": ("describe",),
    "onnxq.metrics": ("Metric", "Outputs", "SampleMetric"),
    "onnxq.proof": ("save",),
    "onnxq.public": ("calibrate", "evaluate", "open_dataset", "quantize"),
    "onnxq.report": ("load_report",),
    "onnxq.tuning": ("TuneConfig", "TuneResult", "build_candidate", "tune"),
    "onnxq.tuning.sensitivities": ("SensitivityTable", "sensitivities"),
    "passes.fold_batchnorm": ("FoldBatchNorm",),
    "passes.golden.text": ("GoldenMismatch", "canonical_text", "check_golden"),
    "passes.simplify": ("Simplify",),
}
_HOME = {name: module for module, names in _PLACES.items() for name in names}


if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name for one that exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'onnxq' has no attribute '{name}'")
        value = getattr(importlib.import_module(_HOME.get(name, "passes")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
