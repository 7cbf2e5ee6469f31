"""Calibration: streamed statistics of activations and the methods that turn them into ranges."""

from onnxq.calibration.cache import StatisticsCache, model_digest
from onnxq.calibration.collect import collect
from onnxq.calibration.observers import METHODS, Method, entropy, min_max, mse, parse_method, percentile
from onnxq.calibration.ranges import CalibratedRanges
from onnxq.calibration.statistics import TensorStatistics

__all__ = [
    "METHODS",
    "CalibratedRanges",
    "Method",
    "StatisticsCache",
    "TensorStatistics",
    "collect",
    "entropy",
    "min_max",
    "model_digest",
    "mse",
    "parse_method",
    "percentile",
]
