"""sqnr by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.metrics.sqnr import SQNR


def _of(found: list[list[float]], wanted: list[list[float]]) -> float:
    metric = SQNR()
    metric.update({"y": np.array(found, np.float32)}, None, {"y": np.array(wanted, np.float32)})
    return metric.compute()


def test_by_hand() -> None:
    assert _of([[9, 0]], [[10, 0]]) == pytest.approx(20.0)  # 100 of signal, 1 of noise
    assert _of([[1, 2]], [[1, 2]]) == math.inf
    assert _of([[1, 1]], [[0, 0]]) == -math.inf
    assert math.isnan(SQNR().compute())
