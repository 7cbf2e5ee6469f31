"""top1 by hand."""

from __future__ import annotations

import math

import numpy as np

from onnxq.metrics.top1 import Top1

# The largest: 2, 0, 1, and of two that are equal the first.
LOGITS = np.array([[0, 1, 2], [3, 1, 2], [0, 9, 2], [5, 5, 1]], np.float32)


def test_by_hand() -> None:
    metric = Top1()
    metric.update({"y": LOGITS[:3]}, np.array([2, 1, 1]), None)
    metric.update({"y": LOGITS[3:]}, np.array([0]), None)
    assert metric.per_sample().tolist() == [True, False, True, True]
    assert metric.compute() == 0.75
    assert metric.stderr() == math.sqrt(0.75 * 0.25 / 4)


def test_certainty_is_the_margin() -> None:
    assert Top1().certainty({"y": LOGITS}).tolist() == [1, 1, 7, 0]
    assert Top1().certainty({"y": LOGITS[:, :1]}).tolist() == [0, 3, 0, 5]


def test_only_the_first_output_counts() -> None:
    metric = Top1()
    metric.update(
        {"y": LOGITS.reshape(4, 3, 1, 1), "features": np.zeros((7, 5))}, np.array([2, 0, 1, 0]), None
    )
    assert metric.compute() == 1.0
