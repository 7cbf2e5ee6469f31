"""`onnxq devices` and `onnxq bench --device`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.onnxq.conftest import Invoke


def test_devices_lists_what_runs(invoke: Invoke) -> None:
    result = invoke("devices", "ort:cpu", "--json")
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)["devices"]
    assert found["runs"] == ["float", "int8"]
    assert "ONNX Runtime on" in found["what"]


def test_devices_that_run_nothing_say_why(invoke: Invoke) -> None:
    result = invoke("devices", "ort:cuda", "nonsense")
    assert result.exit_code == 2
    assert "no CUDAExecutionProvider" in result.stdout
    assert "ort:PROVIDER" in result.stdout


def test_bench_prints_one_table_of_models_by_devices(invoke: Invoke, work: Path) -> None:
    devices = ["--device", "ort:cpu", "--device", "ort:cpu?level=basic"]
    result = invoke("bench", "tiny.onnx", "tiny.onnx", *devices, "--runs", 4, "--json", "--profile")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [(row["device"], row["ratio"] is not None) for row in document["rows"]] == [
        ("ort:cpu", True),
        ("ort:cpu", True),
        ("ort:cpu?level=basic", True),
        ("ort:cpu?level=basic", True),
    ]
    assert all(row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] for row in document["rows"])
    assert len(document["profiles"]) == 4
    assert {"first", "dw", "wide", "fc"} <= {node["node"] for node in document["profiles"][0]["nodes"]}
    shown = invoke("bench", "tiny.onnx", "--device", "ort:cpu", "--profile", "--runs", 4)
    assert "ratio" in shown.stdout
    assert "0 Q/DQ kernel(s) run by themselves" in shown.stdout


def test_bench_tells_a_device_that_is_not_there(invoke: Invoke, work: Path) -> None:
    result = invoke("bench", "tiny.onnx", "--device", "ort:cuda")
    assert result.exit_code == 2
    assert "no CUDAExecutionProvider" in result.stderr


def test_tune_refuses_a_device_that_is_not_there_before_it_writes(
    invoke: Invoke, work: Path, tmp_path: Path
) -> None:
    objectives = ("--objectives", "metric,latency@ort:cuda")
    result = invoke("tune", "tiny.onnx", "--data", "data.npz", *objectives, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "no CUDAExecutionProvider" in result.stderr
    assert not (tmp_path / "run").exists()
