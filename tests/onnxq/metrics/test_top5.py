"""top5 by hand."""

from __future__ import annotations

import math

import numpy as np

from onnxq.metrics.top5 import Top5


def test_by_hand() -> None:
    logits = np.array([[7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7]], np.float32)
    metric = Top5()
    metric.update({"y": logits}, np.array([4, 1]), None)
    metric.update({"y": logits}, np.array([5, 2]), None)
    assert metric.per_sample().tolist() == [True, False, False, True]
    assert metric.compute() == 0.5
    assert metric.stderr() == math.sqrt(0.5 * 0.5 / 4)


def test_few_classes() -> None:
    metric = Top5()
    metric.update({"y": np.array([[1, 2]], np.float32)}, np.array([0]), None)
    assert metric.compute() == 1.0
