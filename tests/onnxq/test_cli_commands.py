"""Every command on a tiny network: it works, it says what it did, and what it wrote is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from onnxq.cli.app import COMMANDS
from onnxq.evaluation import load_session
from passes.graph.model import check, load

Invoke = Callable[..., Result]
TUNE = (
    *("--data", "data.npz", "--calibration-samples", "10"),
    *("--objectives", "metric,bytes", "--metric", "sqnr"),
)
ROOT = str(Path(__file__).resolve().parents[2])


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def outputs(path: Path | str) -> np.ndarray:
    x = np.load("data.npz")["x"]
    return np.asarray(load_session(load(path), threads=1).run(None, {"x": x})[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_help(invoke: Invoke, name: str) -> None:
    assert "Usage:" in ok(invoke(name, "--help")).output


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; from onnxq.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'onnx', 'numpy', 'rich', 'passes'} & set(sys.modules), 'heavy import'\n"
        "print(time.process_time(), file=sys.stderr)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
        for _ in range(2)
    ]
    # CPU time of the process, as the machine may be busy.
    assert min(float(run.stderr) for run in runs) < 0.3


def test_unknown_command_names_the_near_one(invoke: Invoke) -> None:
    result = invoke("quantise")
    assert result.exit_code == 2
    assert "Did you mean 'quantize'?" in result.stderr


def test_info(invoke: Invoke, work: Path) -> None:
    text = ok(invoke("info", "tiny.onnx")).stdout
    assert "16x3x3x3" in text
    facts = json.loads(ok(invoke("info", "tiny.onnx", "--json")).stdout)
    assert facts["opset"] == {"ai.onnx": 17}
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    macs = {layer["name"]: layer["macs"] for layer in facts["layers"]}
    assert macs == {"first": 64 * 16 * 27, "dw": 64 * 16 * 9, "wide": 36 * 256 * 144, "fc": 1024}
    assert facts["macs"] == sum(macs.values())
    assert facts["parameters"] == sum(layer["parameters"] for layer in facts["layers"]) + 16 * 5 + 256 + 4
    assert {layer["weights"] for layer in facts["layers"]} == {"float"}


def test_fold_keeps_the_function(invoke: Invoke, work: Path) -> None:
    assert "tiny.fold.onnx" in ok(invoke("fold", "tiny.onnx")).stdout
    folded = load("tiny.fold.onnx")
    check(folded)
    assert "BatchNormalization" not in {node.op_type for node in folded.proto.graph.node}
    np.testing.assert_allclose(outputs("tiny.fold.onnx"), outputs("tiny.onnx"), rtol=0, atol=1e-3)


@pytest.mark.parametrize("site", ["output", "input"])
def test_smooth(invoke: Invoke, work: Path, site: str) -> None:
    ok(invoke("smooth", "tiny.onnx", "--site", site, "-o", f"new/folder/{site}.onnx"))
    np.testing.assert_allclose(outputs(f"new/folder/{site}.onnx"), outputs("tiny.onnx"), rtol=1e-4, atol=1e-3)


def test_quantize_reports_and_is_reproducible(invoke: Invoke, work: Path) -> None:
    result = ok(invoke("quantize", "tiny.onnx", "--data", "data.npz"))
    assert "4 of 4 layers quantized" in result.stdout
    assert "left after ONNX Runtime's own optimisation" in result.stderr
    ok(invoke("quantize", work / "tiny.onnx", "--data", work / "data.npz", "-o", "again.onnx"))
    assert Path("tiny.int8.onnx").read_bytes() == Path("again.onnx").read_bytes()
    config = json.loads(load("again.onnx").metadata["onnxq.config"])
    assert config["command"] == "quantize"
    assert config["data"] == "data.npz"
    assert str(work) not in json.dumps(config)
    x, y = outputs("again.onnx"), outputs("tiny.onnx")
    assert (x.argmax(1) == y.argmax(1)).mean() > 0.85
    facts = json.loads(ok(invoke("info", "again.onnx", "--json")).stdout)
    assert {layer["weights"] for layer in facts["layers"]} == {"int8:channel"}
    assert {layer["activations"] for layer in facts["layers"]} == {"uint8"}


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["--activations", "dynamic"], "int8:channel"),
        (["--weights", "int4", "--granularity", "block32", "--activations", "float"], "int4:block32"),
        (["--granularity", "tensor", "--data", "data.npz", "--activations", "int8"], "int8"),
        (["--activations", "float", "--smooth", "output"], "int8:channel"),
        (["--random-calibration", "--calibration-samples", "4"], "int8:channel"),
    ],
)
def test_quantize_schemes(invoke: Invoke, work: Path, options: list[str], weights: str) -> None:
    ok(invoke("quantize", "tiny.onnx", "-o", "q.onnx", *options))
    facts = json.loads(ok(invoke("info", "q.onnx", "--json")).stdout)
    assert {layer["weights"] for layer in facts["layers"]} == {weights}
    ok(invoke("info", "q.onnx"))


def test_quantize_says_when_bits_are_padded(invoke: Invoke, work: Path) -> None:
    result = ok(invoke("quantize", "tiny.onnx", "--weights", "int6", "--activations", "float", "--standard"))
    assert "int6:channel in 8-bit tensors" in result.stderr
    assert "int6:channel in int8:channel" in ok(invoke("info", "tiny.int6.onnx")).stdout


def test_quantize_tcq_and_decode(invoke: Invoke, work: Path) -> None:
    ok(invoke("quantize", "tiny.onnx", "--weights", "tcq4", "--activations", "float"))
    assert "tcq4 / float" in ok(invoke("info", "tiny.tcq4.onnx")).stdout
    ok(invoke("decode", "tiny.tcq4.onnx"))
    streams = json.loads(ok(invoke("info", "tiny.tcq4.onnx", "--json")).stdout)
    facts = json.loads(ok(invoke("info", "tiny.tcq4.decode.onnx", "--json")).stdout)
    assert streams["parameters"] == facts["parameters"]
    assert {layer["weights"] for layer in facts["layers"]} == {"float"}


def test_quantize_gse_and_decode(invoke: Invoke, work: Path) -> None:
    ok(invoke("quantize", "tiny.onnx", "--weights", "gse6:block16", "--activations", "float"))
    shown = ok(invoke("info", "tiny.gse6.onnx")).stdout
    assert "gse6:block16 / float" in shown
    assert "in gse6" not in shown  # a row shorter than its block is no other scheme
    ok(invoke("decode", "tiny.gse6.onnx"))
    facts = json.loads(ok(invoke("info", "tiny.gse6.decode.onnx", "--json")).stdout)
    assert {layer["weights"] for layer in facts["layers"]} == {"float"}
    assert {"ai.onnxq"}.isdisjoint(facts["opset"])
    table = json.loads(
        ok(invoke("eval", "tiny.gse6.onnx", "tiny.gse6.decode.onnx", "--data", "data.npz", "--json")).stdout
    )
    assert len({json.dumps(row["metrics"]) for row in table["models"]}) == 1
    again = ok(invoke("decode", "tiny.onnx"))
    assert "nothing to change" in again.stderr


def test_simulated_activations_are_told(invoke: Invoke, work: Path) -> None:
    result = ok(invoke("quantize", "tiny.onnx", "--weights", "gse8", "--activations", "gse8", "-o", "q.onnx"))
    assert "simulated in float" in result.stderr
    assert "gse8:block32 / gse8:block32" in ok(invoke("info", "q.onnx")).stdout


def test_quantize_with_a_policy_and_exclude(invoke: Invoke, work: Path) -> None:
    ok(invoke("policy", "tiny.onnx", "-o", "p.json", "--weights", "int8", "--activations", "float"))
    document = ok(
        invoke("quantize", "tiny.onnx", "--policy", "p.json", "--exclude", "op:Gemm", "--json")
    ).stdout
    assert json.loads(document)["quantized"] == 3
    assert Path("tiny.quantized.onnx").exists()
    again = ok(invoke("policy", "tiny.quantized.onnx", "--csv")).stdout
    assert "fc,float,float,none" in again


def test_apply(invoke: Invoke, work: Path) -> None:
    ok(invoke("apply", "simplify | fold_batchnorm | quantize", "tiny.onnx", "--data", "data.npz"))
    Path("steps.recipe").write_text("simplify\nfold_batchnorm  # and more\n")
    document = ok(invoke("apply", "steps.recipe", "tiny.onnx", "-o", "s.onnx", "--json")).stdout
    assert json.loads(document)["modified"] is True
    assert {"s.onnx", "tiny.out.onnx"} <= {path.name for path in Path().iterdir()}


def test_sensitivity(invoke: Invoke, work: Path) -> None:
    document = json.loads(
        ok(invoke("sensitivity", "tiny.onnx", "--data", "data.npz", "--json", "-o", "s.png")).stdout
    )
    scores = [layer["score"] for layer in document["layers"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    text = ok(invoke("sensitivity", "tiny.onnx", "--data", "data.npz", "--top", "2")).stdout
    assert document["layers"][0]["layer"] in text


def test_eval_and_bench(invoke: Invoke, work: Path) -> None:
    ok(invoke("quantize", "tiny.onnx", "--data", "data.npz"))
    document = json.loads(
        ok(invoke("eval", "tiny.onnx", "tiny.int8.onnx", "--data", "data.npz", "--json")).stdout
    )
    first, second = document["models"]
    assert first["metrics"]["top1"] == 1.0
    assert second["metrics"]["agreement"] == second["metrics"]["top1"]
    assert "±" in ok(invoke("eval", "tiny.int8.onnx", "--data", "data.npz")).stdout
    np.save("x.npy", np.load("data.npz")["x"])
    assert (
        "agreement"
        in ok(invoke("eval", "tiny.int8.onnx", "--data", "x.npy", "--reference", "tiny.onnx")).stdout
    )
    document = json.loads(ok(invoke("bench", "tiny.onnx", "tiny.int8.onnx", "--runs", "3", "--json")).stdout)
    assert document["models"][0]["ratio"] == 1.0
    assert "ratio" in ok(invoke("bench", "tiny.onnx", "--runs", "2", "--data", "data.npz")).stdout


def test_tune_resume_build_report(invoke: Invoke, work: Path) -> None:
    result = ok(invoke("tune", "tiny.onnx", "--pareto", "-o", "run", *TUNE))
    assert "balanced" in result.stdout
    assert "report.html" in result.stdout
    config = json.loads(Path("run/config.json").read_text())
    assert config["calibration_samples"] == 10
    before = Path("run/journal.jsonl").read_bytes()
    again = json.loads(ok(invoke("tune", "tiny.onnx", "-o", "run", *TUNE, "--json")).stdout)
    assert again["resumed"] == again["candidates"]
    assert Path("run/journal.jsonl").read_bytes() == before
    assert len(again["front"]) >= 2
    for path in Path("run/front").glob("*.onnx"):
        check(load(path))
    name = next(member["name"] for member in again["front"] if member["mode"] != "float")
    assert "compared with the given model" in ok(invoke("build", "run", name, "-o", "built.onnx")).stderr
    assert Path("built.onnx").read_bytes() == Path(f"run/front/{name}.onnx").read_bytes()
    Path("run/report.html").unlink()
    assert "balanced" in ok(invoke("report", "run")).stdout
    assert Path("run/report.html").exists()
    ok(invoke("tune", "tiny.onnx", "-o", "other", *TUNE, "--mode", "weights"))
    assert "compare.html" in ok(invoke("report", "run", "other")).stdout
    assert Path("compare/compare.png").exists()
    # The stored configuration is a configuration.
    rerun = ok(invoke("tune", "--config", "run/config.json", "-o", "run", "--json"))
    assert json.loads(rerun.stdout)["resumed"] == again["candidates"]


def test_tune_several_models(invoke: Invoke, work: Path) -> None:
    Path("b.onnx").write_bytes(Path("tiny.onnx").read_bytes())
    ok(invoke("tune", "tiny.onnx", "b.onnx", "-o", "runs", *TUNE, "--mode", "weights"))
    assert Path("runs/tiny/report.json").exists()
    assert Path("runs/b/report.json").exists()


def test_tune_dry_run(invoke: Invoke, work: Path) -> None:
    plan = json.loads(ok(invoke("tune", "tiny.onnx", "-o", "run", *TUNE, "--dry-run", "--json")).stdout)
    assert (plan["layers"], plan["candidates"], plan["finished"]) == (4, 8, 0)
    assert "Nothing was written" in ok(invoke("tune", "tiny.onnx", *TUNE, "--dry-run")).stdout
    assert sorted(path.name for path in Path().iterdir()) == ["data.npz", "tiny.onnx"]


def test_tune_exit_codes(invoke: Invoke, work: Path) -> None:
    result = invoke("tune", "tiny.onnx", "-o", "r1", *TUNE, "--metric-floor", "500")
    assert result.exit_code == 3, result.output
    assert "No candidate of the front reaches the floor" in result.stderr
    result = invoke("tune", "tiny.onnx", "-o", "r2", *TUNE, "--time-budget", "0.01s")
    assert result.exit_code == 4, result.output
    assert ok(invoke("tune", "tiny.onnx", "-o", "r2", *TUNE)).exit_code == 0


def test_golden(invoke: Invoke, work: Path) -> None:
    ok(invoke("golden", "update", "simplify | fold_batchnorm", "tiny.onnx", "golden/tiny.txt"))
    ok(invoke("golden", "check", "simplify | fold_batchnorm", "tiny.onnx", "golden/tiny.txt"))
    result = invoke("golden", "check", "simplify", "tiny.onnx", "golden/tiny.txt")
    assert result.exit_code == 1
    assert "BatchNormalization" in result.output
    assert invoke("golden", "check", "simplify", "tiny.onnx", "none.txt").exit_code == 2


def test_doctor_passes_completion(invoke: Invoke) -> None:
    facts = json.loads(ok(invoke("doctor", "--json")).stdout)
    assert facts["healthy"] is True
    assert {"name": "CPUExecutionProvider", "works": True, "problem": None} in facts["providers"]
    assert "CPUExecutionProvider" in ok(invoke("doctor")).stdout
    assert {"simplify", "smooth", "quantize"} <= {
        entry["name"] for entry in json.loads(invoke("passes", "--json").stdout)
    }
    assert "smooth{" in ok(invoke("passes")).stdout
    for shell in ("bash", "zsh", "fish"):
        assert "_ONNXQ_COMPLETE" in ok(invoke("completion", shell)).stdout


def test_flags_over_file_over_defaults(invoke: Invoke, work: Path) -> None:
    Path("c.json").write_text(json.dumps({"weights": "int4", "activations": "float", "exclude": "first"}))
    ok(invoke("quantize", "tiny.onnx", "--config", "c.json", "-o", "a.onnx"))
    ok(invoke("quantize", "tiny.onnx", "--config", "c.json", "-o", "b.onnx", "--weights", "int8"))
    found = [json.loads(load(name).metadata["onnxq.config"]) for name in ("a.onnx", "b.onnx")]
    assert [config["weights"] for config in found] == ["int4", "int8"]
    assert [config["exclude"] for config in found] == [["first"], ["first"]]
    assert found[0]["calibration"] == "percentile:99.99"
    Path("c.json").write_text(
        json.dumps({"quantize": {"weights": "int5"}, "tune": {"seed": 1}, "activations": "float"})
    )
    ok(invoke("quantize", "tiny.onnx", "--config", "c.json", "--activations", "float", "-o", "a.onnx"))
    assert json.loads(load("a.onnx").metadata["onnxq.config"])["weights"] == "int5"
    Path("c.json").write_text(json.dumps({"wieghts": "int5"}))
    result = invoke("quantize", "tiny.onnx", "--config", "c.json")
    assert result.exit_code == 2
    assert "did you mean 'weights'?" in result.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_toml(invoke: Invoke, work: Path) -> None:
    Path("c.toml").write_text('weights = "int4"\nactivations = "float"\n')
    ok(invoke("quantize", "tiny.onnx", "--config", "c.toml"))
    assert Path("tiny.int4.onnx").exists()


def test_durations() -> None:
    import click

    from onnxq.cli.options import Duration

    kind = Duration()
    texts = {"90s": 90, "20m": 1200, "1h30m": 5400, "45": 45, "1.5h": 5400}
    assert {text: kind.convert(text, None, None) for text in texts} == texts
    for wrong in ("", "soon", "5 apples", "-3s"):
        with pytest.raises(click.BadParameter):
            kind.convert(wrong, None, None)


def test_as_a_process(work: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "onnxq", *args]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False
        )

    done = run("fold", "tiny.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "tiny.fold.onnx"
    failed = run("info", "none.onnx")
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", "Error: none.onnx: no such file\n")
    assert run("--version").stdout.startswith("onnxq, version ")


def test_models_of_other_opsets_are_told(invoke: Invoke, work: Path) -> None:
    proto = onnx.load("tiny.onnx")
    assert proto.opset_import[0].version == 17
    result = ok(invoke("quantize", "tiny.onnx", "--weights", "int4", "--activations", "float"))
    assert "opset 17 upgraded to 21" in result.stderr


def test_sensitivity_table_and_allocate(invoke: Invoke, work: Path) -> None:
    schemes = ["--schemes", "gse2,gse4,gse8", "--data", "data.npz", "-o", "table"]
    found = json.loads(ok(invoke("sensitivity", "tiny.onnx", *schemes, "--json")).stdout)
    assert len(found["entries"]) == 12
    assert {"journal.jsonl", "sensitivity.csv", "sensitivity.png", "space-weights.json"} <= {
        path.name for path in Path("table").iterdir()
    }
    assert "table: ready for onnxq allocate" in ok(invoke("sensitivity", "tiny.onnx", *schemes)).stderr
    ok(invoke("sensitivity", "tiny.onnx", *schemes[:4], "-o", "only.png"))
    assert Path("only.png").stat().st_size > 100

    text = ok(invoke("allocate", "table", "--front", "3", "-o", "front", "--plot", "bits.png")).stdout
    assert "predicted logit MSE" in text
    assert Path("bits.png").stat().st_size > 100
    assert len(list(Path("front").glob("policy-*.json"))) == 3
    ok(invoke("allocate", "table", "--budget", "30kB", "-o", "p.csv"))
    ok(
        invoke(
            "allocate", "table", "--strategy", "threshold", "--tau", "0.01", "--bits", "4,8", "-o", "p.json"
        )
    )
    for name in ("p.csv", "p.json"):
        ok(invoke("quantize", "tiny.onnx", "--policy", name, "-o", f"{name}.onnx"))
    document = json.loads(ok(invoke("allocate", "table", "--budget", "30kB", "--json")).stdout)
    assert document[0]["bytes"] <= 30_000
    assert abs(Path("p.csv.onnx").stat().st_size - document[0]["bytes"]) < 200_000


def test_joint_table_with_costs(invoke: Invoke, work: Path) -> None:
    options = ["--schemes", "int4:channel,int8:channel", "--with-activations", "uint4,uint8", "-o", "table"]
    ok(invoke("sensitivity", "tiny.onnx", "--data", "data.npz", *options))
    text = Path("table/sensitivity.csv").read_text()
    assert "first,float/uint4:asym," in text
    assert len(text.splitlines()) == 1 + 4 * 4
    choices = [f"int{w}:channel/uint{a}:asym" for w in (4, 8) for a in (4, 8)]
    layers = {name: dict(zip(choices, (1, 2, 2, 3), strict=True)) for name in ("first", "dw", "wide", "fc")}
    Path("costs.json").write_text(json.dumps({"name": "latency", "unit": "ms", "layers": layers}))
    costs = ["--costs", "costs.json", "--cost-limit", "latency=9"]
    found = json.loads(ok(invoke("allocate", "table", *costs, "--json")).stdout)
    assert [entry["latency"] <= 9 for entry in found] == [True]
    found = json.loads(ok(invoke("allocate", "table", *costs, "--over", "bops", "--json")).stdout)
    assert len(found) > 2
    assert all(entry["latency"] <= 9 for entry in found)
    most = found[1]["bops"]
    one = json.loads(ok(invoke("allocate", "table", "--bops-budget", most, "--json")).stdout)
    assert one[0]["bops"] <= most
    assert "latency (ms)" in ok(invoke("allocate", "table", *costs)).stdout
    exact = ["--schemes", "int4:channel,float/uint4,int4:channel/uint4", "--json"]
    entries = json.loads(ok(invoke("sensitivity", "tiny.onnx", "--data", "data.npz", *exact)).stdout)
    assert {e["scheme"] for e in entries["entries"]} == {
        *("int4:channel", "float/uint4:asym", "int4:channel/uint4:asym")
    }


def test_tune_by_bits(invoke: Invoke, work: Path) -> None:
    options = "--mode weights --weights gse2,gse4,gse8 --objectives metric,bytes --front 3 --generations 1"
    result = ok(invoke("tune", "tiny.onnx", "--data", "data.npz", "-o", "run", *options.split(), "--json"))
    found = json.loads(result.stdout)
    assert found["finished"]
    assert found["candidates"] >= 3
    missed = invoke(
        "tune", "tiny.onnx", "--data", "data.npz", "-o", "goal", *options.split()[:6], "--budget", "30kB",
        "--metric", "mse", "--metric-floor", "1e-12", "--strategy", "ilp",
    )  # fmt: skip
    assert missed.exit_code == 3
    late = invoke(
        "tune", "tiny.onnx", "--data", "data.npz", "-o", "late", *options.split(), "--time-budget", "0.01"
    )
    assert late.exit_code == 4
