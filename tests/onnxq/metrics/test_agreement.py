"""agreement by hand."""

from __future__ import annotations

import numpy as np

from onnxq.metrics.agreement import Agreement

FLOAT = np.array([[0, 1, 2], [3, 1, 2], [0, 9, 2]], np.float32)


def test_by_hand() -> None:
    metric = Agreement()
    metric.update({"y": np.array([[0, 1, 3], [1, 3, 2], [0, 2, 1]], np.float32)}, None, {"z": FLOAT})
    assert metric.per_sample().tolist() == [True, False, True]
    assert metric.compute() == 2 / 3


def test_float_agrees_with_itself() -> None:
    metric, outputs = Agreement(), {"y": FLOAT}
    metric.update(outputs, None, outputs)
    assert (metric.compute(), metric.stderr()) == (1.0, 0.0)
    assert metric.certainty(outputs).tolist() == [1, 1, 7]
