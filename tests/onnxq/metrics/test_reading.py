"""How values of metrics are read: for a person, against each other, and as goals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.metrics import METRICS, Reading
from passes.core.errors import UserError


@pytest.mark.parametrize(
    ("metric", "value", "sentence", "table"),
    [
        ("top1", 0.9124, "91.2 %", "91.24 %"),
        ("sqnr", 30.04, "30.0 dB", "30.04 dB"),
        ("sqnr", math.inf, "∞", "∞"),
        ("mse", 0.0021, "0.0021", "0.0021"),
        ("top1", None, "n/a", "n/a"),
        ("top1", math.nan, "n/a", "n/a"),
    ],
)
def test_values_for_a_person(metric: str, value: float | None, sentence: str, table: str) -> None:
    assert METRICS[metric].format(value) == sentence
    assert METRICS[metric].format(value, table=True) == table


def test_standard_errors_and_losses_for_a_person() -> None:
    top1, mse = METRICS["top1"], METRICS["mse"]
    assert top1.format_spread(0.912, 0.009) == "91.20 ± 0.90 %"
    assert top1.format_spread(0.912, None) == "91.20 %"
    assert top1.format_difference(0.01) == "1.0 points"
    assert top1.loss(0.9, 0.92, "float") == "2.0 points below float"
    assert top1.loss(0.92, 0.92, "float") == "same top-1 accuracy as float"
    assert mse.loss(0.25, 0.0, "float") == "MSE of the logits 0.25"
    errors = Reading.from_json("wer", {"unit": "%", "higher_is_better": False, "digits": 1})
    assert errors.loss(0.12, 0.1, "float") == "2.0 points above float"
    assert errors.axis == "wer (%)"


def test_metrics_point_the_right_way() -> None:
    assert METRICS["top1"].cost(0.9) < METRICS["top1"].cost(0.8)
    assert METRICS["mse"].cost(0.1) < METRICS["mse"].cost(0.2)
    assert METRICS["sqnr"].cost(math.inf) == -300.0
    assert METRICS["sqnr"].costs(np.array([10.0, np.inf])).tolist() == [-10.0, -300.0]


def test_goals_have_the_unit_of_the_metric() -> None:
    METRICS["sqnr"].check_goal(30.0)
    for name in ("top1", "top5", "agreement"):
        METRICS[name].check_goal(0.75)
        with pytest.raises(UserError, match="is a fraction here"):
            METRICS[name].check_goal(75)
