"""Metrics: values against numpy, chunk by chunk as at once, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.evaluation import Metrics, hits_from_text, hits_to_text, logits_of
from passes.errors import DataError

RNG = np.random.default_rng(0)


def _data(samples: int = 37, classes: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = RNG.normal(size=(samples, classes)).astype(np.float32)
    return (
        logits,
        RNG.integers(0, classes, samples),
        logits + RNG.normal(0, 0.1, logits.shape).astype(np.float32),
    )


def test_against_numpy() -> None:
    logits, labels, reference = _data()
    metrics = Metrics()
    metrics.update(logits, labels, reference)
    score = metrics.score()
    order = np.argsort(-logits, axis=1)
    assert score.values["top1"] == pytest.approx((order[:, 0] == labels).mean())
    assert score.values["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
    assert score.values["agreement"] == pytest.approx((order[:, 0] == reference.argmax(1)).mean())
    error = np.square(logits.astype(np.float64) - reference).mean()
    assert score.values["mse"] == pytest.approx(error, rel=1e-6)
    power = np.square(reference.astype(np.float64)).mean()
    assert score.values["sqnr"] == pytest.approx(10 * np.log10(power / error), rel=1e-6)
    rate = score.values["top1"]
    assert score.stderr["top1"] == pytest.approx(math.sqrt(rate * (1 - rate) / 37))
    assert score.headline == "top1"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 36), max_size=5))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    logits, labels, reference = _data()
    whole, pieces = Metrics(), Metrics()
    whole.update(logits, labels, reference)
    for part in np.split(np.arange(37), sorted(cuts)):
        if len(part):
            pieces.update(logits[part], labels[part], reference[part])
    left, right = whole.score(), pieces.score()
    np.testing.assert_array_equal(left.hits, right.hits)
    assert left.values.keys() == right.values.keys()
    for name, value in left.values.items():
        assert right.values[name] == pytest.approx(value)


def test_few_classes_and_no_labels() -> None:
    metrics = Metrics()
    metrics.update(np.asarray([[1, 2]], np.float32), np.asarray([0]), None)
    assert metrics.score().values == {"top1": 0.0, "top5": 1.0}
    unlabelled = Metrics()
    unlabelled.update(np.asarray([[1, 2]], np.float32), None, np.asarray([[1, 2]], np.float32))
    assert unlabelled.score().headline == "agreement"
    assert unlabelled.score().values["sqnr"] == math.inf
    silent = Metrics()
    silent.update(np.ones((1, 2), np.float32), None, np.zeros((1, 2), np.float32))
    assert silent.score().values["sqnr"] == -math.inf


def test_logits_are_two_dimensional() -> None:
    assert logits_of([np.zeros((3, 4, 1, 1))]).shape == (3, 4)
    assert logits_of([np.zeros(4)]).shape == (1, 4)
    assert logits_of([np.zeros((3, 2), np.float16)]).dtype == np.float32


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} is out of range"):
        Metrics().update(np.zeros((2, 4), np.float32), np.asarray([0, label]), None)


def test_rows_that_do_not_pair_up() -> None:
    with pytest.raises(DataError, match="1 rows of logits for 3 labels"):
        Metrics().update(logits_of([np.zeros(3)]), np.asarray([0, 1, 2]), None)
    with pytest.raises(DataError, match="those of the float model"):
        Metrics().update(np.zeros((2, 3), np.float32), None, np.zeros((2, 4), np.float32))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.bool_, st.integers(0, 70)))
def test_hits_as_text(hits: np.ndarray) -> None:
    np.testing.assert_array_equal(hits_from_text(hits_to_text(hits), len(hits)), hits)
