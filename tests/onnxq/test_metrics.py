"""What metrics share: the table, how values are read, chunks, hits as text, and what is refused."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.evaluation import Score, Scorer
from onnxq.metrics import (
    METRICS,
    Metric,
    Reading,
    SampleMetric,
    default_metric,
    hits_from_text,
    hits_to_text,
    logits_of,
    metric_text,
    metrics_beside,
    open_metric,
    reading_of,
)
from passes.core.errors import DataError, UserError

RNG = np.random.default_rng(0)


def _data(samples: int = 37, classes: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = RNG.normal(size=(samples, classes)).astype(np.float32)
    return (
        logits,
        RNG.integers(0, classes, samples),
        logits + RNG.normal(0, 0.1, logits.shape).astype(np.float32),
    )


def _scorer(*, labelled: bool = True, reference: bool = True) -> Scorer:
    return Scorer(metrics_beside(default_metric(labelled), labelled=labelled, reference=reference))


def _score(logits: np.ndarray, labels: np.ndarray | None, reference: np.ndarray | None) -> Score:
    scorer = _scorer(labelled=labels is not None, reference=reference is not None)
    scorer.update({"y": logits}, labels, None if reference is None else {"z": reference})
    return scorer.score()


def test_against_numpy() -> None:
    logits, labels, reference = _data()
    score = _score(logits, labels, reference)
    order = np.argsort(-logits, axis=1)
    assert list(score.values) == ["top1", "top5", "agreement", "mse", "sqnr"]
    assert score.values["top1"] == pytest.approx((order[:, 0] == labels).mean())
    assert score.values["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
    assert score.values["agreement"] == pytest.approx((order[:, 0] == reference.argmax(1)).mean())
    error = np.square(logits.astype(np.float64) - reference).mean()
    assert score.values["mse"] == pytest.approx(error, rel=1e-6)
    power = np.square(reference.astype(np.float64)).mean()
    assert score.values["sqnr"] == pytest.approx(10 * np.log10(power / error), rel=1e-6)
    rate = score.values["top1"]
    assert score.stderr["top1"] == pytest.approx(math.sqrt(rate * (1 - rate) / 37))
    assert set(score.stderr) == {"top1", "top5", "agreement"}
    assert score.headline == "top1"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 36), max_size=5))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    logits, labels, reference = _data()
    whole, pieces = _scorer(), _scorer()
    whole.update({"y": logits}, labels, {"y": reference})
    for part in np.split(np.arange(37), sorted(cuts)):
        if len(part):
            pieces.update({"y": logits[part]}, labels[part], {"y": reference[part]})
    left, right = whole.score(), pieces.score()
    np.testing.assert_array_equal(left.hits, right.hits)
    assert left.values.keys() == right.values.keys()
    for name, value in left.values.items():
        assert right.values[name] == pytest.approx(value)


def test_what_is_measured_follows_from_labels_and_reference() -> None:
    one = np.asarray([[1, 2]], np.float32)
    assert _score(one, np.asarray([0]), None).values == {"top1": 0.0, "top5": 1.0}
    unlabelled = _score(one, None, one)
    assert unlabelled.headline == "agreement"
    assert set(unlabelled.values) == {"agreement", "mse", "sqnr"}
    with pytest.raises(DataError, match="top5: needs labels"):
        metrics_beside(METRICS["top5"], labelled=False, reference=True)
    with pytest.raises(DataError, match="mse: compares with the float model"):
        metrics_beside(METRICS["mse"], labelled=True, reference=False)


def test_logits_are_two_dimensional() -> None:
    assert logits_of([np.zeros((3, 4, 1, 1))]).shape == (3, 4)
    assert logits_of([np.zeros(4)]).shape == (1, 4)
    assert logits_of([np.zeros((3, 2), np.float16)]).dtype == np.float32


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} is out of range"):
        _score(np.zeros((2, 4), np.float32), np.asarray([0, label]), None)


def test_rows_that_do_not_pair_up() -> None:
    with pytest.raises(DataError, match="1 rows of logits for 3 labels"):
        _score(np.zeros(3), np.asarray([0, 1, 2]), None)
    with pytest.raises(DataError, match="those of the float model"):
        _score(np.zeros((2, 3), np.float32), None, np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", METRICS)
def test_nan_and_infinity_rank_no_class(name: str, bad: float) -> None:
    good, logits, labels = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32), np.zeros(3, np.int64)
    logits[2, 1] = bad
    metric = METRICS[name].fresh()
    metric.update({"y": good}, labels, {"y": good})
    with pytest.raises(DataError, match="the model gives NaN or infinity for sample 5"):
        metric.update({"y": logits}, labels, {"y": good})
    if metric.needs_reference:
        with pytest.raises(DataError, match="the float model gives NaN or infinity for sample 5"):
            metric.update({"y": good}, labels, {"y": logits})


def test_a_model_that_rules_every_class_out_is_refused() -> None:
    with pytest.raises(DataError, match="sample 0"):
        _score(np.full((1, 4), -np.inf, np.float32), np.zeros(1, np.int64), None)


def test_a_class_that_is_ruled_out_is_fine() -> None:
    logits = np.array([[1, -np.inf, 0]], np.float32)
    score = _score(logits, np.zeros(1, np.int64), np.array([[1, -np.inf, 1]], np.float32))
    assert score.values == pytest.approx(
        {"top1": 1.0, "top5": 1.0, "agreement": 1.0, "mse": 0.5, "sqnr": 10 * np.log10(2)}
    )


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.bool_, st.integers(0, 70)))
def test_hits_as_text(hits: np.ndarray) -> None:
    found = hits_from_text(hits_to_text(hits), len(hits))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, hits)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 70), elements=st.floats(-1e6, 1e6)))
def test_values_of_samples_as_text(values: np.ndarray) -> None:
    np.testing.assert_array_equal(hits_from_text(hits_to_text(values), len(values)), values)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_table(name: str) -> None:
    metric = METRICS[name]
    assert open_metric(name) is metric
    assert metric.name == name
    read = Reading.from_json(name, metric.to_json())
    assert read.to_json() == metric.to_json()
    assert (read.format(0.5), read.axis, read.gap(1, 2)) == (
        metric.format(0.5),
        metric.axis,
        metric.gap(1, 2),
    )


def test_unknown_names() -> None:
    for look_up in (open_metric, reading_of):
        with pytest.raises(UserError, match=r"unknown metric 'top-1'; did you mean 'top1'\?"):
            look_up("top-1")
    with pytest.raises(UserError, match="nowhere:Metric: cannot be imported"):
        open_metric("nowhere:Metric")
    with pytest.raises(UserError, match="unknown metric 'nowhere:Metric'"):
        reading_of("nowhere:Metric")  # a name of a run folder is never imported


class _Plain:
    """Not a Metric, but has all that one needs."""

    name = "worst_error"
    higher_is_better = False
    worst, best = 1.0, 0.0

    def __init__(self, power: int = 1) -> None:
        self.power, self._most = power, 0.0

    def update(self, outputs: Any, targets: Any, reference: Any) -> None:
        self._most = max(self._most, float(np.abs(outputs["y"] - reference["y"]).max()) ** self.power)

    def compute(self) -> float:
        return self._most


def test_any_object_with_the_methods_is_a_metric() -> None:
    metric = open_metric(_Plain(2))
    assert metric.name == "worst_error"
    assert not metric.higher_is_better
    for _ in range(2):  # nothing is left from the first evaluation
        held = metric.fresh()
        held.update({"y": np.array([1.0, 3.0])}, None, {"y": np.array([1.0, 2.5])})
        assert held.compute() == 0.25
    assert held.stderr() is None
    assert open_metric(_Plain).compute() == 0.0
    assert metric_text(metric).endswith(':_Plain {"power":2}')
    assert metric_text(METRICS["top1"]) == "top1"


def _changed(**attributes: Any) -> Any:
    return type("Changed", (_Plain,), attributes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (object(), "object is not a metric: it needs a name, update"),
        (_changed(name="two words"), "its name 'two words' is not one of letters"),
        (_changed(name="top1"), "is that of one of onnxq's own metrics"),
        (_changed(best=2.0), "its best value 2 must be below its worst, 1"),
        (_changed(unit=3), "unit is 3, not a text"),
        (_changed(digits=99), "digits is 99"),
        (_changed(beside=("top7",)), "'top7' in its beside"),
        (_changed(__init__=lambda self, must: None), "cannot be made without arguments"),
    ],
)
def test_what_is_not_a_metric(wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_metric(wrong)


class _Share(SampleMetric):
    """A number a sample; cannot be above 1."""

    name = "share"
    races = True

    def score(self, outputs: Any, targets: Any, reference: Any) -> np.ndarray:
        return np.asarray(outputs["y"], np.float64)


def test_metrics_of_samples_know_their_standard_error() -> None:
    metric = _Share()
    assert math.isnan(metric.compute())
    assert metric.stderr() is None
    metric.update({"y": np.array([0.0, 0.5])}, None, None)
    metric.update({"y": np.array([1.0, 0.5])}, None, None)
    assert (metric.samples, metric.compute()) == (4, 0.5)
    assert metric.stderr() == pytest.approx(math.sqrt((0.25 + 0.25) / 3 / 4))
    with pytest.raises(DataError, match="better than 1, its best"):
        metric.update({"y": np.array([1.5])}, None, None)


def test_what_the_users_code_raises_names_the_metric() -> None:
    scorer = Scorer([open_metric(_Share)])
    with pytest.raises(UserError, match="metric share: it raised KeyError: 'y'"):
        scorer.update({"x": np.zeros(3)}, None, None)


def test_a_float_model_that_guesses_is_doubted() -> None:
    doubt = METRICS["top1"].doubt({"top1": 0.1, "top5": 0.4}, 50)
    assert doubt is not None
    assert "reaches only 10.0 % top-1" in doubt
    assert METRICS["top1"].doubt({"top1": 0.1, "top5": 0.4}, 49) is None
    assert METRICS["top1"].doubt({"top1": 0.1, "top5": 0.6}, 50) is None
    assert METRICS["mse"].doubt({"mse": 5.0}, 50) is None


def test_nothing_else_decides_by_the_name_of_a_metric() -> None:
    root = Path(__file__).resolve().parents[2] / "onnxq"
    wrong = []
    for path in root.rglob("*.py"):
        if path.parent.name == "metrics":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.MatchValue):
                values = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                names = [value for value in values if isinstance(value, str) and value in METRICS]
                wrong += [f"{path.name}:{node.lineno}: {name}" for name in names]
    assert not wrong, "ask the metric"


def test_only_metrics_of_samples_race() -> None:
    races = {name for name, metric in METRICS.items() if metric.races}
    assert {"top1", "top5", "agreement"} <= races
    assert all(isinstance(METRICS[name], SampleMetric) for name in races)
    assert Metric.per_sample(METRICS["mse"]) is None
