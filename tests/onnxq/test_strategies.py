"""The strategies that spend bits, as whole runs: anytime, resumable, reproducible, with exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.files import sha256_file
from onnxq.report import load_report
from onnxq.report.report import data_uri
from onnxq.search import Journal, read_journal
from onnxq.sensitivity import Settings, choice_text
from onnxq.tuning import TuneConfig, TuneResult, tune
from onnxq.tuning.sensitivities import sensitivities
from onnxq.tuning.space import read_space
from passes.core.errors import ResumeError, UserError
from passes.graph.model import load
from passes.policy import Policy
from tests.nets import Net
from tests.tuning import by_bits, write_labelled

STRATEGIES = ("threshold", "ilp", "shapley", "nsga2", "auto")
SAMPLES = 160
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, four convolutions of very different sizes and a Gemm, and data.npz."""
    folder = tmp_path_factory.mktemp("strategies")
    net = Net(seed=2)
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 16, name="stem", act="relu")
    y = net.conv(y, 16, 16, groups=16, name="depthwise", act="relu")
    y = net.conv(y, 16, 48, 1, name="expand", act="relu")
    y = net.conv(y, 48, 24, 1, name="project", act="relu")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    model = net.model(net.add("Gemm", y, net.weight(24, 6), name="fc"))
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (SAMPLES, 3, 8, 8)).astype(np.float32)
    write_labelled(folder, model.proto, x)
    return folder


def state(run: Path, result: TuneResult) -> tuple[list[str], list[dict[str, Any]]]:
    files = [f"{path.name} {sha256_file(path)}" for path in sorted((run / "front").glob("*.onnx"))]
    return files, [member.to_json() for member in result.front]


@pytest.fixture(scope="module")
def finished(workspace: Path) -> dict[str, tuple[Path, TuneResult]]:
    runs = {}
    for strategy in STRATEGIES:
        run = workspace / strategy
        runs[strategy] = (run, tune(by_bits(workspace, strategy), run))
    return runs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_ends_in_a_front_of_real_files(
    finished: dict[str, tuple[Path, TuneResult]], strategy: str
) -> None:
    run, result = finished[strategy]
    assert result.finished
    assert len(result.candidates) >= 3
    assert len({str(candidate.policy) for candidate in result.candidates}) == len(result.candidates)
    assert {candidate.strategy.partition("-")[0] for candidate in result.candidates} >= (
        {"ilp", "threshold"} if strategy == "auto" else {strategy}
    )
    for member in result.front:
        if member.mode != "float":
            assert (run / "front" / f"{member.name}.onnx").stat().st_size == member.bytes
    assert load_report(run)["finished"] is True
    pictures = ["pareto", "objectives", "sensitivity-weights", "allocation-weights"]
    pictures += ["shapley-weights"] if strategy == "shapley" else []
    assert sorted(pictures) == sorted(path.stem for path in run.glob("*.png"))
    page = (run / "report.html").read_text()
    for name in pictures:
        assert data_uri((run / f"{name}.png").read_bytes()) in page
    name, problem = read_space(run)
    assert name == "net.onnx"
    assert problem.layers == ("stem", "depthwise", "expand", "project", "fc")


def test_group_sizes_are_compared_in_the_report(workspace: Path) -> None:
    run = workspace / "groups"
    weights = ("gse4:block8", "gse4:block32", "gse8:block8", "gse8:block32")
    result = tune(by_bits(workspace, "threshold", weights=weights, front=2), run)
    uniform = [c for c in result.candidates if c.strategy == "uniform"]
    assert len(uniform) == 4
    assert data_uri((run / "group_size-weights.png").read_bytes()) in (run / "report.html").read_text()


def test_sizes_are_predicted(finished: dict[str, tuple[Path, TuneResult]]) -> None:
    run, result = finished["auto"]
    problem = read_space(run)[1]
    for candidate in result.candidates:
        assignment = problem.assignment(Policy.from_json(candidate.policy))
        # A mixture brings the functions of all its formats, a uniform file only one: 2 KB each.
        slack = 2 if len(set(assignment.tolist())) == 1 else 2048 * len(set(assignment.tolist()))
        assert candidate.bytes == pytest.approx(problem.size(assignment), abs=slack)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_runs_are_equal_to_the_byte(
    workspace: Path, finished: dict[str, tuple[Path, TuneResult]], strategy: str
) -> None:
    run = workspace / f"{strategy}-again"
    assert state(run, tune(by_bits(workspace, strategy, threads=2), run)) == state(*finished[strategy])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_anywhere_and_resumed_measures_nothing_twice(
    workspace: Path,
    finished: dict[str, tuple[Path, TuneResult]],
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
) -> None:
    """Stopped behind every 17th journal record, whatever it is of: sensitivity, value, candidate."""
    run = workspace / f"{strategy}-killed"
    written: list[tuple[str, str]] = []
    whole = Journal.append

    def fragile(self: Journal, kind: str, key: str, payload: Any) -> None:
        whole(self, kind, key, payload)
        written.append((kind, key))
        if len(written) % 17 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", fragile)
    for _ in range(60):
        try:
            result = tune(by_bits(workspace, strategy), run)
            break
        except KeyboardInterrupt:
            continue
    # The hits of a candidate stand before it; a kill in between measures it again, for it was not finished.
    finished_work = [record for record in written if record[0] != "hits"]
    assert len(finished_work) == len(set(finished_work)) > 17
    assert state(run, result) == state(*finished[strategy])


KILLED = """
import json, os, signal, sys
from onnxq.search import Journal
from onnxq.tuning import TuneConfig, tune

count, whole = 0, Journal.append

def append(self, kind, key, payload):
    global count
    whole(self, kind, key, payload)
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append
tune(TuneConfig.from_json(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
@pytest.mark.parametrize(
    ("strategy", "records"), [("threshold", 9), ("ilp", 23), ("shapley", 24), ("nsga2", 31), ("auto", 34)]
)
def test_a_process_that_is_killed_leaves_a_run_that_goes_on(
    workspace: Path, finished: dict[str, tuple[Path, TuneResult]], strategy: str, records: int
) -> None:
    run, held = workspace / f"{strategy}-sigkill", by_bits(workspace, strategy)
    arguments = [json.dumps(held.to_json()), str(run), str(records)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    before = read_journal(run)
    assert before is not None
    done = sum(len(entries) for entries in before.kinds.values())
    assert done == records
    result = tune(held, run)
    lines = (run / "journal.jsonl").read_text().splitlines()[1:]
    keys = [(entry["kind"], entry["key"]) for entry in map(json.loads, lines) if entry["kind"] != "hits"]
    assert len(keys) == len(set(keys))
    assert state(run, result) == state(*finished[strategy])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_expired_budget_leaves_the_best_so_far(workspace: Path, strategy: str) -> None:
    run = workspace / f"{strategy}-short"
    result = tune(by_bits(workspace, strategy, time_budget=1e-6), run)
    assert not result.finished
    assert len(result.candidates) == 1
    report = load_report(run)
    assert report["finished"] is False
    assert any("estimated" in note for note in report["notes"])


def test_one_budget_gives_one_policy_below_it(workspace: Path) -> None:
    size = 14_000.0
    result = tune(by_bits(workspace, "ilp", budget=size), workspace / "budget")
    problem = read_space(workspace / "budget")[1]
    assert 1 <= len(result.candidates) <= 2  # without and with interactions
    for candidate in result.candidates:
        assert problem.size(problem.assignment(Policy.from_json(candidate.policy))) <= size
    with pytest.raises(UserError, match="the smallest file of this search space"):
        tune(by_bits(workspace, "ilp", budget=10.0), workspace / "too-small")


def test_a_metric_floor_is_approached_and_told(workspace: Path) -> None:
    held = by_bits(workspace, "ilp", metric="agreement", metric_floor=0.9)
    data = np.load(workspace / "data.npz")
    np.save(workspace / "plain.npy", data["x"])
    import dataclasses

    held = dataclasses.replace(held, data=str(workspace / "plain.npy"))
    result = tune(held, workspace / "floor")
    assert result.goal_met is True
    best = min(c.bytes for c in result.candidates if c.complete and c.metrics["agreement"] >= 0.9)
    assert best < max(c.bytes for c in result.candidates)
    missed = dataclasses.replace(held, metric_floor=1.01)
    assert tune(missed, workspace / "floor-missed").goal_met is False


def test_static_activations_keep_their_scheme(workspace: Path) -> None:
    options = {"modes": ("static",), "weights": ("int4:channel", "int6:channel", "int8:channel")}
    result = tune(by_bits(workspace, "", **options), workspace / "static")
    assert result.finished
    assert {c.strategy for c in result.candidates} >= {"ilp", "threshold"}  # auto, for three widths
    entries = [entry for c in result.candidates for entry in c.policy["layers"].values()]
    assert {entry["activations"] for entry in entries if entry["weights"] != "float"} == {"uint8:asym"}


JOINT: dict[str, Any] = {
    "modes": ("static",),
    "weights": ("int4:channel", "int8:channel"),
    "activations": "uint3,uint8",
    "objectives": "metric,bops",
    "permutations": 2,
}


# auto runs all the others but shapley.
@pytest.mark.parametrize("strategy", ["shapley", "auto"])
def test_activations_are_searched_together_with_weights(workspace: Path, strategy: str) -> None:
    run = workspace / f"joint-{strategy}"
    result = tune(by_bits(workspace, strategy, **JOINT), run)
    assert result.finished
    problem = read_space(run)[1]
    assert len(problem.choices) == 5
    kinds = {entry["activations"] for c in result.candidates for entry in c.policy["layers"].values()}
    assert kinds >= {"uint3:asym", "uint8:asym"}
    journal = read_journal(run)
    assert journal is not None
    keys = set(journal.kinds["sensitivity"])
    assert {"stem=int4:channel", "stem=float/uint3:asym", "stem=float/uint8:asym"} <= keys
    for candidate in result.candidates:
        policy = Policy.from_json(candidate.policy)
        assert candidate.bops == problem.operations(problem.assignment(policy))
    # Three bits of activations are dear: a policy without them stands above.
    ordered = sorted((c for c in result.front if c.mode != "float"), key=lambda c: c.bops or 0)
    assert len(ordered) > 1
    assert ordered[0].metrics["mse"] > ordered[-1].metrics["mse"]


def test_limits_on_operations_and_on_a_device_hold_for_every_candidate(workspace: Path) -> None:
    from onnxq.public import open_dataset

    model = load(workspace / "net.onnx")
    data = open_dataset(str(workspace / "data.npz"), model, limit=16)
    first = sensitivities(model, data, JOINT["weights"], activations=["uint3", "uint8"]).problem
    layers = {
        name: {"float": 32.0, **{choice_text(c): float(c.weights.bits) for c in first.choices}}
        for name in first.layers
    }
    costs = workspace / "costs.json"
    costs.write_text(json.dumps({"name": "latency", "unit": "us", "rest": 2, "layers": layers}))
    most = (first.operations(first.uniform(0)) + first.operations(first.uniform(3))) / 2
    limits: dict[str, Any] = {"bops_budget": most, "costs": (str(costs),), "limits": ("latency=34",)}
    for strategy in ("shapley", "auto"):
        run = workspace / f"limits-{strategy}"
        result = tune(by_bits(workspace, strategy, **JOINT, **limits), run)
        problem = read_space(run)[1]
        assert result.candidates
        for candidate in result.candidates:
            assignment = problem.assignment(Policy.from_json(candidate.policy))
            assert problem.within(assignment, {"bops": most, "latency": 34.0})
    with pytest.raises(UserError, match="has no cost for int4:channel"):
        tune(by_bits(workspace, "ilp", **limits, weights=("int4:channel", "gse4")), workspace / "refused")
    assert not (workspace / "refused").exists()
    with pytest.raises(UserError, match="`bops_budget`: ranking knows no limits"):
        tune(by_bits(workspace, "ranking", bops_budget=most), workspace / "refused")
    with pytest.raises(UserError, match="`limits` power=3: there is no resource 'power'"):
        tune(by_bits(workspace, "ilp", limits=("power=3",)), workspace / "refused")


def test_sensitivities_of_activations_and_of_pairs(workspace: Path) -> None:
    from onnxq.public import open_dataset

    model = load(workspace / "net.onnx")
    data = open_dataset(str(workspace / "data.npz"), model, limit=32)
    settings = Settings(precision=0)
    exact = sensitivities(
        model, data, ["int4:channel", "float/uint3", "int4:channel/uint3"], settings=settings
    )
    paired = sensitivities(model, data, ["int4:channel"], activations=["uint3"], settings=settings)
    for layer in exact.problem.layers:
        weights, activations, both = (
            exact.entries[layer, text].mse
            for text in ("int4:channel", "float/uint3:asym", "int4:channel/uint3:asym")
        )
        assert activations > 0
        # A Conv whose weights are quantized too gets a pair behind it as well.
        assert both > 0.5 * max(weights, activations)
        row = paired.problem.layers.index(layer)
        # Added up, they are what the integer program goes by.
        assert paired.problem.cost[row, 0] == pytest.approx(weights + activations, rel=1e-6)
    with pytest.raises(UserError, match="names activations, and so does `with_activations`"):
        sensitivities(model, data, ["int4/uint8"], activations=["uint3"])


def test_the_default_strategy_follows_what_is_asked_for() -> None:
    assert TuneConfig("m", "d").chosen_strategy == "ranking"
    assert TuneConfig("m", "d", weights=("int4", "int8", "int8:channel")).chosen_strategy == "ranking"
    assert TuneConfig("m", "d", weights=("gse2", "gse4", "gse6")).chosen_strategy == "auto"
    # A limit was once left unread by the default strategy of few widths.
    assert TuneConfig("m", "d", budget=1e6).chosen_strategy == "auto"
    assert TuneConfig("m", "d", bops_budget=1e6).chosen_strategy == "auto"
    assert TuneConfig("m", "d", tau=0.1).chosen_strategy == "threshold"


def test_one_more_scheme_measures_only_that_one(workspace: Path) -> None:
    model, folder = load(workspace / "net.onnx"), workspace / "table"
    from onnxq.public import open_dataset

    data = open_dataset(str(workspace / "data.npz"), model)
    first = sensitivities(model, data, ["gse2", "gse8"], folder)
    before = read_journal(folder)
    assert before is not None
    assert len(before.kinds["sensitivity"]) == 10
    more = sensitivities(model, data, ["gse2", "gse4", "gse8"], folder)
    after = (folder / "journal.jsonl").read_text().splitlines()
    assert len(after) == 1 + 15
    assert all(more.entries[key] == entry for key, entry in first.entries.items())
    assert len((folder / "sensitivity.csv").read_text().splitlines()) == 16
    with pytest.raises(ResumeError, match="`seed`"):
        sensitivities(model, data, ["gse2"], folder, settings=Settings(seed=1))
