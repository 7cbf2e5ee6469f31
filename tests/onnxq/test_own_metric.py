"""A metric of the user's own: through tune, eval, report and build, in Python, from a package, and racing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import onnxq as oq
from onnxq.evaluation import Evaluator
from onnxq.metrics import METRICS
from passes.core.errors import UserError
from passes.graph.model import Model
from tests.nets import Net, Samples

Invoke = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
SPEC = "own_metrics:OutputError"
TUNE = (
    *("--calibration-samples", "10", "--objectives", "metric,bytes"),
    *("--mode", "static", "--threads", "1"),
)


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def own(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny network, unlabelled data, and the example of CONTRIBUTING.md as a module."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    blocks = [block for block in blocks if "oq.Metric" in block]
    assert len(blocks) == 1
    (work / "own_metrics.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    np.savez("plain.npz", x=np.load("data.npz")["x"])
    return work


def _error(model: Path, x: np.ndarray) -> float:
    """The example by hand, for the one output of the tiny network."""
    given = oq.load_session("tiny.onnx", threads=1).run(None, {"x": x})[0]
    made = oq.load_session(str(model), threads=1).run(None, {"x": x})[0]
    return float(np.linalg.norm(made - given) / np.linalg.norm(given))


def test_the_whole_round_on_the_command_line(invoke: Invoke, own: Path) -> None:
    tuned = ok(invoke("tune", "tiny.onnx", "--data", "plain.npz", *TUNE, "--metric", SPEC, "-o", "run"))
    assert "output_error" in tuned.stdout
    report = json.loads((own / "run" / "report.json").read_text())
    assert report["metric"] == "output_error"
    assert report["metrics"]["output_error"]["higher_is_better"] is False
    assert list(report["float"]["metrics"]) == ["output_error"]  # it names no other metric beside it
    assert report["float"]["metrics"]["output_error"] == 0.0
    assert 0 < report["hypervolume"] < 1
    by_name = {entry["name"]: entry for entry in report["candidates"]}
    front = [by_name[name] for name in report["front"] if name != "float"]
    errors = [entry["metrics"]["output_error"] for entry in front]
    assert len(errors) > 1
    assert errors == sorted(errors, reverse=True)  # the smallest file first, and it errs most
    best = next(pick for pick in report["picks"] if pick["name"] == "best-accuracy")
    assert by_name[best["candidate"]]["metrics"]["output_error"] == min(errors)
    assert f"{100 * min(errors):.1f} points above float" in best["reason"]

    first = own / "run" / "front" / f"{front[0]['name']}.onnx"
    held = ok(
        invoke("eval", first, "--data", "plain.npz", "--reference", "tiny.onnx", "--metric", SPEC, "--json")
    )
    value = json.loads(held.stdout)["models"][0]["metrics"]["output_error"]
    assert value == pytest.approx(_error(first, np.load("plain.npz")["x"]), rel=1e-5)
    shown = ok(
        invoke("eval", first, "--data", "plain.npz", "--reference", "tiny.onnx", "--metric", SPEC)
    ).stdout
    assert f"{100 * value:.2f} %" in shown

    # What is done with a run afterwards runs none of its code.
    sys.modules.pop("own_metrics")
    (own / "own_metrics.py").write_text("raise SystemExit('imported')")
    page = ok(invoke("report", "run")).stdout
    assert f"{100 * errors[0]:.2f} %" in page
    assert "error of the worst output" in (own / "run" / "report.html").read_text()
    ok(invoke("report", "run", "run", "-o", "both"))
    assert f"output_error {100 * errors[0]:.1f} %" in ok(invoke("build", "run", front[0]["name"])).stdout


def test_floors_and_goals(invoke: Invoke, own: Path) -> None:
    common = ("tune", "tiny.onnx", "--data", "plain.npz", *TUNE, "--metric", SPEC)
    assert invoke(*common, "--metric-floor", "0.5", "-o", "reached").exit_code == 0
    missed = invoke(*common, "--metric-floor", "1e-9", "-o", "missed")
    assert missed.exit_code == 3
    assert "No candidate of the front reaches the floor of 0.0 %" in missed.stderr
    refused = invoke(*common, "--metric-floor", "5", "-o", "refused")
    assert refused.exit_code == 2
    assert "is a fraction here" in refused.stderr


def test_what_is_not_to_be_found_or_measured(invoke: Invoke, own: Path) -> None:
    for metric, data, message in (
        ("own_metrics:Nothing", "plain.npz", "own_metrics:Nothing: cannot be imported"),
        ("output_error", "plain.npz", "unknown metric 'output_error'"),
        ("top1", "plain.npz", "metric top1: needs labels, and the data have none"),
    ):
        refused = invoke("tune", "tiny.onnx", "--data", data, *TUNE, "--metric", metric, "-o", "run")
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
        assert not (own / "run").exists()
    alone = invoke("eval", "tiny.onnx", "--data", "data.npz", "--metric", "sqnr")
    assert alone.exit_code == 2
    assert "metric sqnr compares with the float model, so give --reference FLOAT" in alone.stderr


def test_a_package_registers_its_metric(invoke: Invoke, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = own / "own_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        f"[onnxq.metrics]\noutput_error = {SPEC}\nother_name = {SPEC}\n"
    )
    monkeypatch.syspath_prepend(own)
    common = ("eval", "tiny.onnx", "--data", "plain.npz", "--reference", "tiny.onnx", "--metric")
    assert "0.00 %" in ok(invoke(*common, "output_error")).stdout
    assert "the package that registers it calls it 'output_error'" in invoke(*common, "other_name").stderr
    assert "did you mean 'output_error'?" in invoke(*common, "output_eror").stderr
    for command in ("tune", "eval"):
        told = re.sub(r"\s+", " ", ok(invoke(command, "--help")).stdout)
        assert ", output_error, or a class of your own" in told
        assert all(name in told for name in METRICS)


class Share(oq.SampleMetric):
    """How near each sample's outputs are to float's: 1 / (1 + distance)."""

    name = "nearness"
    needs_reference = True
    races = True

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def score(self, outputs: oq.Outputs, targets: Any, reference: oq.Outputs | None) -> np.ndarray:
        assert reference is not None
        apart = np.linalg.norm(outputs["y"] - reference["y"], axis=1)
        return np.asarray(1 / (1 + apart**self.power))

    def certainty(self, outputs: oq.Outputs) -> np.ndarray:
        return np.sort(outputs["y"], axis=1)[:, -1]


@pytest.fixture(scope="module")
def many(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "many.npz"
    np.savez(path, x=np.random.default_rng(5).normal(size=(150, 3, 8, 8)).astype(np.float32))
    return path


def test_objects_race_by_their_samples_and_the_front_is_the_same(
    tiny: Path, many: Path, tmp_path: Path
) -> None:
    def run(racing: bool) -> oq.TuneResult:
        config = oq.TuneConfig(
            str(tiny),
            str(many),
            calibration_samples=30,
            ranking_samples=4,
            chunk=15,
            modes=("static", "dynamic"),
            weights=("int4:channel", "int8:channel"),
            objectives="metric,bytes",
            metric=Share(2.0),
            threads=1,
            racing=racing,
        )
        return oq.tune(config, tmp_path / str(racing))

    raced, whole = run(True), run(False)
    assert sum(not c.complete for c in raced.candidates) > 0
    assert all(c.complete for c in whole.candidates)
    assert [(m.name, m.metrics) for m in raced.front] == [(m.name, m.metrics) for m in whole.front]
    assert all(m.stderr["nearness"] > 0 for m in raced.front if m.mode != "float")
    config = json.loads((tmp_path / "True" / "config.json").read_text())
    assert config["metric"].endswith(':Share {"power":2.0}')
    assert raced.metric == "nearness"


def test_all_outputs_reach_a_metric_that_asks_for_them() -> None:
    seen: list[tuple[str, ...]] = []

    class Seen(oq.Metric):
        name = "seen"

        def update(self, outputs: oq.Outputs, targets: Any, reference: oq.Outputs | None) -> None:
            assert reference is not None
            assert {name: array.shape for name, array in outputs.items()} == {
                name: array.shape for name, array in reference.items()
            }
            seen.append(tuple(outputs))

        def compute(self) -> float:
            return 0.5

    net = Net()
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act="relu")
    model: Model = net.model(net.add("Flatten", net.add("GlobalAveragePool", y)), y)
    names = tuple(value.name for value in model.proto.graph.output)
    data = Samples("x", np.random.default_rng(3).normal(size=(10, 3, 8, 8)).astype(np.float32))
    evaluator = Evaluator(model, data, metric=Seen(), chunk=4)
    assert evaluator.evaluate(model).values == evaluator.confirm(model).values == {"seen": 0.5}
    assert seen == [names] * 9  # float, candidate, confirmed; three chunks each
    seen.clear()
    assert oq.evaluate(model, data, model, metric=Seen(), chunk=10).values == {"seen": 0.5}
    assert seen == [names]
    first_only = Evaluator(model, data, chunk=4)
    assert {tuple(outputs) for _, outputs in first_only.outputs(model)} == {names[:1]}


def test_workers_import_the_metric_themselves(own: Path) -> None:
    def run(workers: int) -> oq.TuneResult:
        config = oq.TuneConfig(
            "tiny.onnx",
            "plain.npz",
            calibration_samples=10,
            ranking_samples=4,
            modes=("weights",),
            objectives="metric,bytes",
            metric=SPEC,
            workers=workers,
        )
        return oq.tune(config, own / f"run{workers}")

    assert [m.metrics for m in run(1).front] == [m.metrics for m in run(0).front]


def test_what_a_report_says_of_its_metric_is_data(invoke: Invoke, own: Path) -> None:
    ok(invoke("tune", "tiny.onnx", "--data", "plain.npz", *TUNE, "--metric", SPEC, "-o", "run"))
    path = own / "run" / "report.json"
    report = json.loads(path.read_text())
    described = report["metrics"]["output_error"]
    odd = {**described, "label": "$\\frac{<script>\x1b[31m", "short": "\x1b[31m", "unit": "$\\x\x1b[31m"}
    path.write_text(json.dumps({**report, "metrics": {"output_error": odd}}))
    shown = ok(invoke("report", "run")).stdout + ok(invoke("report", "run", "run", "-o", "both")).stdout
    assert "\x1b[31m" not in shown
    assert "frac{<script>" not in (own / "run" / "report.html").read_text()
    for change, message in (
        ({"metrics": {"output_error": {**described, "digits": 10**9}}}, "digits"),
        ({"metrics": {}}, "its metric 'output_error' is neither onnxq's own nor described in it"),
    ):
        path.write_text(json.dumps({**report, **change}))
        with pytest.raises(UserError, match=message):
            oq.load_report(own / "run")
