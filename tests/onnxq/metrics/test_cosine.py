"""cosine by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.metrics.cosine import Cosine
from passes.core.errors import DataError


def test_by_hand() -> None:
    metric = Cosine()
    # Of (3, 4) and (4, 3): 24 / 25. Of (1, 0) and (0, 1): 0. Of a vector and its double: 1.
    metric.update({"y": np.array([[3.0, 4.0], [1.0, 0.0]])}, None, {"y": np.array([[4.0, 3.0], [0.0, 1.0]])})
    metric.update({"y": np.array([[0.1, 0.2]])}, None, {"y": np.array([[0.2, 0.4]])})
    assert metric.per_sample() == pytest.approx([0.96, 0.0, 1.0])
    assert metric.compute() == pytest.approx(1.96 / 3)
    assert metric.stderr() == pytest.approx(np.std([0.96, 0.0, 1.0], ddof=1) / np.sqrt(3))


def test_the_worst_output_counts() -> None:
    ones, other = np.ones((2, 3, 4)), np.array([[1.0, 0.0], [0.0, 0.0]])
    metric = Cosine()
    metric.update({"y": ones, "z": other}, None, {"y": ones, "z": np.array([[3.0, 4.0], [0.0, 0.0]])})
    assert metric.per_sample() == pytest.approx([0.6, 1.0])


def test_what_cannot_be_compared() -> None:
    ones = np.ones((2, 3))
    for outputs, reference, message in (
        ({"y": ones}, {"z": ones}, "outputs are y, those of the float model z"),
        ({"y": ones}, {"y": np.ones((2, 4))}, "output 'y' is"),
        ({"y": ones, "z": np.ones((5, 3))}, None, "are not all .batch"),
        (
            {"y": np.array([[1.0], [np.nan]])},
            None,
            "the model gives NaN or infinity for sample 1 in its output 'y'",
        ),
    ):
        with pytest.raises(DataError, match=message):
            Cosine().update(outputs, None, reference or outputs)
