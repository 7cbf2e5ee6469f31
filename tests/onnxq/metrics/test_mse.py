"""mse by hand."""

from __future__ import annotations

import math

import numpy as np

from onnxq.metrics.mse import MSE


def test_by_hand() -> None:
    metric = MSE()
    assert math.isnan(metric.compute())
    metric.update({"y": np.array([[1, 2]], np.float32)}, None, {"y": np.array([[1, 4]], np.float32)})
    assert metric.compute() == 2.0  # (0 + 4) / 2
    metric.update({"y": np.array([[0, 0]], np.float32)}, None, {"y": np.array([[1, 1]], np.float32)})
    assert metric.compute() == 1.5  # (0 + 4 + 1 + 1) / 4
    assert metric.stderr() is None


def test_what_is_ruled_out_does_not_count() -> None:
    metric = MSE()
    metric.update(
        {"y": np.array([[1, -np.inf, 0]], np.float32)}, None, {"y": np.array([[4, 7, 0]], np.float32)}
    )
    assert metric.compute() == 4.5  # (9 + 0) / 2
