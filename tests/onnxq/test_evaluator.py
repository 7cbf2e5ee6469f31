"""The evaluator: the same score from segments, caches and threads as from the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.evaluation import Evaluator, Score, evaluate_file, load_session
from passes.core.errors import DataError
from passes.graph.model import Model
from passes.quantize import Quantize
from tests.nets import Net, Samples, apply

ARRAY = np.random.default_rng(3).normal(size=(46, 3, 8, 8)).astype(np.float32)
LABELS = list(np.random.default_rng(4).integers(0, 10, 46))


def _model() -> Model:
    net = Net()
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act="relu", name="c0")
    for index in range(1, 6):
        y = net.conv(y, 8, 8, act="relu", name=f"c{index}")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    return net.model(net.add("Gemm", y, net.weight(8, 10), net.weight(10), name="head"))


MODEL = _model()
CANDIDATES = [
    apply(Quantize(exclude=exclude), MODEL, {"x": ARRAY}).model
    for exclude in ((), ("head",), ("head", "c5"), ("head", "c5", "c4"), ("c0",))
]


class _Counted:
    def __init__(self, session: Any, counter: list[int]) -> None:
        self.session, self.counter = session, counter

    def run(self, names: Any, feed: Any) -> Any:
        self.counter[0] += 1
        return self.session.run(names, feed)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times any session of the evaluator has run."""
    counter = [0]
    monkeypatch.setattr(
        "onnxq.evaluation.evaluator.load_session", lambda *a, **k: _Counted(load_session(*a, **k), counter)
    )
    return counter


def _same(left: Score, right: Score, *, rel: float = 1e-6) -> None:
    np.testing.assert_array_equal(left.hits, right.hits)
    for name, value in left.values.items():
        assert right.values[name] == pytest.approx(value, rel=rel, abs=1e-12)


def test_order_threads_chunks_of_time_and_cache_do_not_matter() -> None:
    data = Samples("x", ARRAY, LABELS)
    scores: dict[int, Score] = {}
    for options, order in (
        ({}, (0, 1, 2, 3, 4)),
        ({"threads": 2}, (4, 2, 0, 3, 1)),
        ({"threads": 3}, (1, 1, 0, 0, 4, 3, 2)),
        ({"budget": 1}, (3, 0, 1, 2, 4)),
    ):
        evaluator = Evaluator(MODEL, data, chunk=8, **options)
        for index in order:
            score = evaluator.evaluate(CANDIDATES[index])
            # Whole, ONNX Runtime chooses other float layouts than for segments: other roundings.
            _same(scores.setdefault(index, score), score, rel=1e-3 if "budget" in options else 1e-6)


@pytest.mark.parametrize("index", range(len(CANDIDATES)))
def test_replayed_equals_the_whole_model(index: int) -> None:
    data = Samples("x", ARRAY, LABELS)
    evaluator = Evaluator(MODEL, data, chunk=8)
    replayed, whole = evaluator.evaluate(CANDIDATES[index]), evaluator.confirm(CANDIDATES[index])
    assert replayed.samples == whole.samples == len(data)
    assert replayed.values["top1"] == whole.values["top1"]
    assert replayed.values["mse"] == pytest.approx(whole.values["mse"], rel=0.02)
    _same(whole, evaluate_file(CANDIDATES[index], evaluator.dataset, MODEL, chunk=8, threads=1))


def test_samples_that_float_gets_wrong_come_first_then_the_unsure_ones() -> None:
    evaluator = Evaluator(MODEL, Samples("x", ARRAY, LABELS), chunk=8)
    score = evaluator.reference()
    wrong = int((~score.hits).sum())
    assert 0 < wrong < len(ARRAY)
    assert not score.hits[:wrong].any()
    assert score.hits[wrong:].all()
    margins = []
    for _, outputs in evaluator.outputs(MODEL):
        logits = next(iter(outputs.values()))
        ranked = np.sort(logits, axis=1)
        margins.extend((ranked[:, -1] - ranked[:, -2]).tolist())
    assert margins[wrong:] == sorted(margins[wrong:])
    assert evaluator.reference() is score


def test_the_reference_agrees_with_itself() -> None:
    score = Evaluator(MODEL, Samples("x", ARRAY), chunk=8).reference()
    assert score.headline == "agreement"
    assert score.values["agreement"] == 1.0
    assert score.values["mse"] == 0.0
    assert score.values["sqnr"] == np.inf


def test_a_known_beginning_is_not_run_again(runs: list[int]) -> None:
    evaluator = Evaluator(MODEL, Samples("x", ARRAY, LABELS), chunk=8)
    chunks = 6

    def cost(model: Model) -> int:
        before = runs[0]
        evaluator.evaluate(model)
        return runs[0] - before

    evaluator.reference()
    first = cost(CANDIDATES[0])
    assert first >= 5 * chunks
    assert cost(CANDIDATES[0]) == 0  # the logits themselves are held
    assert cost(CANDIDATES[1]) <= 3 * chunks  # the head and the pooling before it
    assert cost(CANDIDATES[2]) <= 4 * chunks
    assert cost(CANDIDATES[4]) >= 5 * chunks  # the first layer differs
    whole = Evaluator(MODEL, Samples("x", ARRAY, LABELS), chunk=8, budget=0)
    whole.reference()
    before = runs[0]
    whole.evaluate(CANDIDATES[0])
    assert runs[0] - before == chunks


def test_racing_stops_at_a_stage() -> None:
    evaluator = Evaluator(MODEL, Samples("x", ARRAY, LABELS), chunk=8)
    seen: list[int] = []

    def hopeless(score: Score) -> bool:
        seen.append(score.samples)
        return len(seen) == 2

    progress: list[int] = []
    score = evaluator.evaluate(CANDIDATES[0], stages=(5, 20, 30), hopeless=hopeless, progress=progress.append)
    assert seen == [8, 24]  # stages end with whole chunks
    assert score.samples == 24
    assert progress == [8, 16, 24]
    full = evaluator.evaluate(CANDIDATES[0], stages=(5, 20), hopeless=lambda _: False)
    assert full.samples == 46
    np.testing.assert_array_equal(full.hits[:24], score.hits)


def test_several_outputs_are_run_whole() -> None:
    net = Net()
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act="relu")
    pooled = net.add("Flatten", net.add("GlobalAveragePool", y))
    model = net.model(pooled, y)
    evaluator = Evaluator(model, Samples("x", ARRAY), chunk=8)
    assert evaluator.evaluate(apply(Quantize(), model, {"x": ARRAY}).model).values["agreement"] > 0.8


def test_no_samples_and_wrong_labels_are_refused() -> None:
    with pytest.raises(DataError, match="no sample"):
        Evaluator(MODEL, Samples("x", ARRAY[:0]))
    with pytest.raises(DataError, match="label 10 is out of range"):
        Evaluator(MODEL, Samples("x", ARRAY[:2], [3, 10])).reference()
