"""The main job on a tiny network: anytime, resumable, reproducible, rebuildable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxq.evaluation import load_session
from onnxq.files import sha256_bytes, sha256_file
from onnxq.report import load_report
from onnxq.search import Candidate, read_journal
from onnxq.tuning import Event, TuneConfig, TuneResult, build_candidate, tune
from onnxq.tuning.measure import Measurer
from passes.core.errors import ResumeError, UnsupportedModelError, UserError
from passes.graph.model import serialize

SAMPLES = 160


def _network() -> onnx.ModelProto:
    """Three Conv-BatchNorm-Relu blocks, the middle one residual, and a Gemm: 4 classes."""
    rng = np.random.default_rng(7)
    initializers, nodes, source = [], [], "input"

    def constant(name: str, array: Any) -> str:
        initializers.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    for index, (cin, cout) in enumerate(((3, 8), (8, 8), (8, 8))):
        weight = constant(
            f"w{index}", rng.normal(size=(cout, cin, 3, 3)) * rng.uniform(0.05, 1, (cout, 1, 1, 1))
        )
        nodes.append(helper.make_node("Conv", [source, weight], [f"c{index}"], f"conv{index}", pads=[1] * 4))
        stats = [constant(f"{k}{index}", rng.uniform(0.5, 1.5, cout)) for k in ("s", "b", "m", "v")]
        nodes.append(
            helper.make_node("BatchNormalization", [f"c{index}", *stats], [f"n{index}"], f"bn{index}")
        )
        if index == 1:
            nodes.append(helper.make_node("Add", [f"n{index}", source], [f"a{index}"], "add"))
        nodes.append(
            helper.make_node(
                "Relu", [f"a{index}" if index == 1 else f"n{index}"], [f"r{index}"], f"relu{index}"
            )
        )
        source = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["pool"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], "flatten"))
    weights = [constant("fw", rng.normal(size=(4, 8))), constant("fb", rng.normal(size=4))]
    nodes.append(helper.make_node("Gemm", ["flat", *weights], ["logits"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx and data.npz, whose labels the float network gets right where it is sure."""
    folder = tmp_path_factory.mktemp("tune")
    onnx.save(_network(), folder / "net.onnx")
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(SAMPLES, 3, 8, 8)) * rng.uniform(0.2, 3, (SAMPLES, 3, 1, 1))).astype(np.float32)
    logits = load_session(str(folder / "net.onnx"), threads=1).run(None, {"input": x})[0]
    np.savez(folder / "data.npz", x=x, y=(logits + rng.normal(size=logits.shape) * 0.3).argmax(axis=1))
    return folder


def config(workspace: Path, **options: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "model": str(workspace / "net.onnx"),
        "data": str(workspace / "data.npz"),
        "calibration_samples": 40,
        "ranking_samples": 8,
        "objectives": "metric,bytes",
        "weights": ("int4:channel", "int8:channel"),
        "modes": ("static",),
        "threads": 1,
        **options,
    }
    return TuneConfig(**settings)


def files(run: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((run / "front").glob("*.onnx"))}


def numbers(result: TuneResult) -> list[dict[str, Any]]:
    return [candidate.to_json() for candidate in result.front]


@pytest.fixture(scope="module")
def finished(workspace: Path) -> tuple[Path, TuneResult]:
    run = workspace / "whole"
    return run, tune(config(workspace), run)


def test_front_is_measured_saved_and_reported(finished: tuple[Path, TuneResult]) -> None:
    run, result = finished
    assert result.finished
    assert len(result.candidates) == 8  # 4 layers over (int4, int8, float), without the float end
    assert len(result.front) >= 2
    report = load_report(run)
    assert report["front"] == [member.name for member in result.front]
    assert report["finished"] is True
    for member in result.front:
        if member.mode != "float":
            path = run / "front" / f"{member.name}.onnx"
            assert path.stat().st_size == member.bytes
            assert sha256_file(path) == member.sha256
            onnx.checker.check_model(str(path), full_check=True)
    for name in ("report.html", "pareto.png", "errors.png", "objectives.png", "config.json"):
        assert (run / name).stat().st_size > 100
    assert set(files(run)) == {f"{member.name}.onnx" for member in result.front if member.mode != "float"}


def test_layer_mapping_of_the_report_is_that_of_the_file(finished: tuple[Path, TuneResult]) -> None:
    run, result = finished
    member = next(m for m in result.front if m.mode != "float")
    proto = onnx.load(run / "front" / f"{member.name}.onnx")
    bits = {i.name: 4 if i.data_type == onnx.TensorProto.INT4 else 8 for i in proto.graph.initializer}
    quantized = {
        n.input[0].removesuffix("_quantized"): bits[n.input[0]]
        for n in proto.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in bits and "bias" not in n.input[0]
    }
    stated = sorted(
        entry["weights"] for entry in member.policy["layers"].values() if entry["weights"] != "float"
    )
    stored = sorted(
        f"int{b}:channel" for name, b in quantized.items() if name.startswith(("w", "fw", "conv"))
    )
    assert stated == stored


def test_same_seed_gives_byte_identical_models(workspace: Path, finished: tuple[Path, TuneResult]) -> None:
    again = tune(config(workspace, threads=2), workspace / "again")
    assert files(workspace / "again") == files(finished[0])
    assert numbers(again) == numbers(finished[1])


def test_interrupted_anywhere_and_resumed_gives_the_same_front(
    workspace: Path, finished: tuple[Path, TuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workspace / "interrupted"
    measured: list[str] = []
    whole = Measurer.measure

    def fragile(self: Measurer, proposal: Any, *args: Any, **options: Any) -> Candidate:
        if len(measured) % 2 == 0 and (not measured or measured[-1] != "-"):
            measured.append("-")
            raise KeyboardInterrupt
        measured.append(proposal.name)
        return whole(self, proposal, *args, **options)

    monkeypatch.setattr(Measurer, "measure", fragile)
    for _ in range(30):
        try:
            result = tune(config(workspace), run)
            break
        except KeyboardInterrupt:
            if (run / "report.json").exists():
                report = load_report(run)
                for name in report["front"]:
                    if name != "float":
                        onnx.checker.check_model(str(run / "front" / f"{name}.onnx"), full_check=True)
    names = [name for name in measured if name != "-"]
    assert len(names) == len(set(names)) == 8
    assert result.resumed > 0
    assert files(run) == files(finished[0])
    assert numbers(result) == numbers(finished[1])


def test_finished_run_measures_nothing_again(
    workspace: Path, finished: tuple[Path, TuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> Candidate:
        raise AssertionError("measured twice")

    monkeypatch.setattr(Measurer, "measure", never)
    before = (finished[0] / "journal.jsonl").read_bytes()
    result = tune(config(workspace), finished[0])
    assert result.resumed == 8
    assert numbers(result) == numbers(finished[1])
    assert (finished[0] / "journal.jsonl").read_bytes() == before


def test_resume_with_something_else_names_it(workspace: Path, finished: tuple[Path, TuneResult]) -> None:
    with pytest.raises(ResumeError, match="`seed`"):
        tune(config(workspace, seed=1), finished[0])


def test_any_candidate_is_rebuilt_to_the_byte(finished: tuple[Path, TuneResult]) -> None:
    run, result = finished
    for candidate in result.candidates:
        model, _ = build_candidate(run, candidate.name)
        assert sha256_bytes(serialize(model)) == candidate.sha256
    picked, _ = build_candidate(run, "balanced")
    assert serialize(picked)
    with pytest.raises(UserError, match="near names"):
        build_candidate(run, "static-999")


def test_rounding_on_data_is_in_the_candidates(workspace: Path, tmp_path: Path) -> None:
    """Other weights than to nearest, the same again when rebuilt, and a recipe that says so."""
    options: dict[str, Any] = {
        "modes": ("weights",),
        "weights": ("int3:channel",),
        "objectives": "metric,bytes",
    }
    plain = tune(config(workspace, **options), tmp_path / "plain")
    rounded = tune(config(workspace, **options, rounding="gptq"), tmp_path / "rounded")
    first, second = ({c.step: c for c in result.candidates}[0] for result in (plain, rounded))
    assert first.sha256 != second.sha256
    for candidate in rounded.candidates[:2]:
        model, _ = build_candidate(tmp_path / "rounded", candidate.name)
        assert sha256_bytes(serialize(model)) == candidate.sha256
    recipes = list((tmp_path / "rounded" / "front").glob("*.recipe"))
    assert recipes
    assert all("rounding=gptq" in recipe.read_text() for recipe in recipes)
    with pytest.raises(ResumeError, match="rounding"):
        tune(config(workspace, **options), tmp_path / "rounded")
    with pytest.raises(UserError, match="`rounding` up"):
        tune(config(workspace, **options, rounding="up"), tmp_path / "none")


def test_damping_is_in_the_candidates(workspace: Path, tmp_path: Path) -> None:
    """Chosen by layer, it gives other weights than 1.0, and the same again when rebuilt."""
    options: dict[str, Any] = {
        "modes": ("weights",),
        "weights": ("int3:channel",),
        "objectives": "metric,bytes",
        "calibration_samples": 48,
        "rounding": "gptq",
    }
    found = {}
    for damping in ("1.0", "auto"):
        run = tmp_path / damping
        first = tune(config(workspace, **options | {"damping": damping}), run).candidates[0]
        assert sha256_bytes(serialize(build_candidate(run, first.name)[0])) == first.sha256
        found[damping] = first.sha256
    assert found["1.0"] != found["auto"]


def test_recipe_beside_a_front_member_makes_the_same_layers(finished: tuple[Path, TuneResult]) -> None:
    from passes.core.recipe import load_recipe

    run, result = finished
    member = next(m for m in result.front if m.mode != "float")
    recipe = load_recipe(str(run / "front" / f"{member.name}.recipe"))
    assert [p.name for p in recipe][:3] == ["inline_functions", "simplify", "fold_batchnorm"]
    assert json.loads(recipe.members[-1].policy)["layers"] == member.policy["layers"]  # type: ignore[attr-defined]


def test_expired_budget_leaves_the_best_so_far(workspace: Path) -> None:
    run = workspace / "short"
    result = tune(config(workspace, time_budget=1e-6), run)
    assert not result.finished
    assert len(result.candidates) == 1
    assert load_report(run)["finished"] is False
    assert files(run)


def test_each_start_on_a_short_time_gets_further(workspace: Path) -> None:
    hurried = config(workspace, time_budget=1e-6, weights=("int8:channel",))
    results = [tune(hurried, workspace / "in-steps") for _ in range(4)]
    assert [len(result.candidates) for result in results] == [1, 2, 3, 4]
    assert [result.resumed for result in results] == [0, 1, 2, 3]
    assert [result.finished for result in results] == [False, False, False, True]
    assert len({candidate.name for candidate in results[-1].candidates}) == 4


def test_goal_that_cannot_be_met_is_told(workspace: Path) -> None:
    result = tune(config(workspace, metric_floor=1.01, weights=("int8:channel",)), workspace / "goal")
    assert result.goal_met is False
    assert result.front


def test_failed_candidate_is_recorded_and_the_run_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Measurer.build

    def broken(self: Measurer, key: str, policy: Any) -> Any:
        if len(policy.quantized) == 2 and all("int8" in str(policy[n].weights) for n in policy.quantized):
            raise UnsupportedModelError("the device is gone")
        return whole(self, key, policy)

    monkeypatch.setattr(Measurer, "build", broken)
    result = tune(config(workspace, weights=("int8:channel",)), workspace / "failed")
    failed = [candidate for candidate in result.candidates if candidate.status == "failed"]
    assert [candidate.error for candidate in failed] == ["the device is gone"]
    assert len(result.candidates) == 4
    assert result.finished


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_other_modes(workspace: Path, mode: str) -> None:
    events: list[Event] = []
    settings = config(
        workspace, modes=(mode,), weights=("int8:channel",), objectives="metric,bytes,latency,bops"
    )
    result = tune(dataclasses.replace(settings, latency_runs=2), workspace / mode, on_event=events.append)
    assert [c.status for c in result.candidates] == ["ok"] * 4
    assert all(c.latency is not None and c.latency.ratio > 0 for c in result.candidates)
    assert {event.phase for event in events} >= {"prepare", "rank", "measure", "confirm"}


def test_unlabelled_data_is_judged_by_agreement(workspace: Path) -> None:
    with np.load(workspace / "data.npz") as data:
        np.savez(workspace / "plain.npz", x=data["x"])
    result = tune(
        config(workspace, data=str(workspace / "plain.npz"), weights=("int8:channel",)), workspace / "plain"
    )
    assert result.metric == "agreement"
    assert "top1" not in result.front[0].metrics


def test_random_calibration_is_stamped(workspace: Path) -> None:
    run = workspace / "random"
    tune(config(workspace, random_calibration=True, weights=("int8:channel",)), run)
    assert any("random" in warning for warning in load_report(run)["warnings"])


def test_racing_gives_up_and_never_lets_a_partial_measurement_on_the_front(workspace: Path) -> None:
    run = workspace / "racing"
    result = tune(config(workspace, weights=("int8:channel", "int2:channel"), objectives="metric,bytes"), run)
    stopped = [candidate for candidate in result.candidates if not candidate.complete]
    journal = read_journal(run)
    assert journal is not None
    assert all(candidate.samples < 120 for candidate in stopped)
    assert all(member.complete for member in result.front)
    assert set(journal.kinds.get("hits", {})) == {c.key for c in result.candidates if c.complete}
