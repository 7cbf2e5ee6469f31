"""tune with latency on devices: several in one run, and real RPC servers that die, hang and come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser
from scipy.stats import kendalltau

from onnxq.report import load_report
from onnxq.runners.child import Child
from onnxq.runners.timing import compare as real_compare
from onnxq.search import parse_objectives
from onnxq.search.candidate import Latency
from onnxq.search.latency_model import LatencyModel, LayerWork
from onnxq.tuning import Event, TuneConfig, TuneResult, tune
from passes.core.errors import DeviceError, UserError
from tests.rpc import Served, free_port, serve, silent_peer, track
from tests.tuning import write_labelled

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="TVM is not installed")
GRAPH = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,6,6] x) => (float[N,4] y) {
  [conv] a = Conv<pads=[1,1,1,1]>(x, w1) [relu] b = Relu(a) [gap] c = GlobalAveragePool(b) [flat] d =
  Flatten(c)
  [fc] y = Gemm<transB=1>(d, w2) }"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two layers, and 40 samples that it labelled itself."""
    folder = tmp_path_factory.mktemp("devices")
    rng = np.random.default_rng(0)
    model = parser.parse_model(GRAPH)
    for name, shape in {"w1": (256, 3, 3, 3), "w2": (4, 256)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype("f"), name))
    write_labelled(folder, model, rng.standard_normal((40, 3, 6, 6)).astype(np.float32))
    return folder


def config(place: Path, *devices: str, **more: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "model": str(place / "net.onnx"),
        "data": str(place / "data.npz"),
        "calibration_samples": 10,
        "ranking_samples": 4,
        "latency_runs": 3,
        "objectives": ",".join(["metric", "bytes", *(f"latency@{device}" for device in devices)]),
        "modes": ("static",),
        "threads": 1,
        **more,
    }
    return TuneConfig(**settings)


def records(run: Path) -> Counter[tuple[str, str]]:
    """How often each (kind, key) stands in the journal: more than once means measured twice."""
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return Counter((entry["kind"], entry["key"]) for entry in map(json.loads, lines))


def check_whole(run: Path, result: TuneResult, *devices: str) -> None:
    """Everything is measured, once, on every device."""
    assert [candidate.error for candidate in result.candidates if candidate.error] == []
    assert result.finished
    assert {candidate.status for candidate in result.candidates} == {"ok"}
    for candidate in [*result.candidates, result.baseline]:
        assert list(candidate.latencies) == list(devices)
        assert all(latency.runs for latency in candidate.latencies.values())
    counts = records(run)
    assert set(counts.values()) == {1}
    kinds = Counter(kind for kind, _ in counts)
    candidates = len(result.candidates) + 1
    assert kinds["candidate"] == candidates
    assert kinds["scored"] == candidates - 1
    assert kinds["latency"] == candidates * len(devices)


DEVICES = ("ort:cpu", "ort:cpu?level=basic")


def test_objectives_name_devices() -> None:
    found = parse_objectives("metric, bytes, latency@tvm://10.0.0.2:9090?target=mali&key=Phone, latency")
    assert [objective.value for objective in found][2:] == [
        "latency@tvm://10.0.0.2:9090?target=mali&key=Phone",
        "latency",
    ]
    for text, says in (
        ("metric,latency@", "names no|form ort:"),
        ("metric,latency@gpu", "form ort:PROVIDER"),
        ("metric,bytes@ort:cpu", "only latency depends on a device"),
        ("metric,latency@ort:cpu,latency@ort:cpu", "stands twice"),
    ):
        with pytest.raises(UserError, match=says):
            parse_objectives(text)


def test_several_devices_in_one_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tune(config(place, *DEVICES), tmp_path)
    check_whole(tmp_path, result, *DEVICES)
    assert all(candidate.latency == candidate.latencies["ort:cpu"] for candidate in result.candidates)
    report = load_report(tmp_path)
    assert report["objectives"][2:] == [f"latency@{device}" for device in DEVICES]
    assert "of float on ort:cpu?level=basic" in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr("onnxq.tuning.latencies.compare", lambda *_, **__: pytest.fail("measured twice"))
    again = tune(config(place, *DEVICES), tmp_path)
    assert again.resumed == len(again.candidates)
    check_whole(tmp_path, again, *DEVICES)


def test_predicted_latencies_are_measured_on_the_front(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real_compare(*arguments, **options)

    monkeypatch.setattr("onnxq.tuning.latencies.compare", counted)
    monkeypatch.setattr("onnxq.search.latency_model._FEWEST", 1)
    weights = ("int3:channel", "int4:channel", "int5:channel", "int8:channel")
    settings = config(place, "ort:cpu", weights=weights, strategy="ranking", latency_every=3)
    result = tune(settings, tmp_path)
    assert result.finished
    predicted = [c for c in result.candidates if not c.latencies["ort:cpu"].runs]
    assert predicted
    assert len(calls) < len(result.candidates) + 1
    front = [member for member in result.front if member.mode != "float"]
    assert front
    assert all(member.latencies["ort:cpu"].runs for member in front)
    assert set(records(tmp_path).values()) == {1}


def test_cost_model_learns_what_a_layer_costs() -> None:
    """Ratios made of known costs: int8 takes 0.4 of float in dense layers and 0.9 in depthwise ones."""
    layers = {f"l{i}": LayerWork(100 + 40 * i, 10, depthwise=i % 3 == 0) for i in range(9)}
    total = sum(layer.macs for layer in layers.values())

    def policy(quantized: set[str]) -> dict[str, Any]:
        return {"layers": {n: {"weights": "int8:channel", "activations": "uint8"} for n in quantized}}

    def truth(quantized: set[str]) -> float:
        cost = {
            name: (0.9 if layer.depthwise else 0.4) if name in quantized else 1.0
            for name, layer in layers.items()
        }
        return sum(cost[name] * layer.macs for name, layer in layers.items()) / total

    rng = np.random.default_rng(0)
    choices = [{name for name in layers if rng.random() < share} for share in np.linspace(0.1, 0.9, 40)]
    model = LatencyModel(layers)
    for chosen in choices[::2]:
        ratio = truth(chosen) * rng.uniform(0.98, 1.02)
        model.learn("d", policy(chosen), Latency(ratio, ratio, ratio, 1.0, ratio, 20))
    guesses = [model.predict("d", policy(chosen)) for chosen in choices[1::2]]
    assert all(guess is not None for guess in guesses)
    truths = [truth(chosen) for chosen in choices[1::2]]
    np.testing.assert_allclose(np.array(guesses, float), truths, atol=0.03)
    assert kendalltau(guesses, truths).statistic > 0.9
    assert model.predict("another", policy(set())) is None
    # A prediction teaches nothing.
    model.learn("another", policy(set()), Latency(1.0, 1.0, 1.0, 1.0, 1.0, 0))
    assert not model._seen.get("another")


def test_unreachable_device_at_the_start_is_one_sentence(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    device = f"tvm://127.0.0.1:{free_port()}?target=llvm&connect=3&retries=0"
    with pytest.raises(
        DeviceError, match=r"device tvm://.*: connect: .*is python -m tvm.exec.rpc_server running"
    ):
        tune(config(place, device), tmp_path)


# Limits that a busy machine keeps; a fault brings shorter ones (at_call).
ONCE = "connect=60&upload=60&run=60&retries=0"
HASTY_S = 2.0


def at_call(monkeypatch: pytest.MonkeyPatch, name: str, count: int, action: Callable[[], Any]) -> None:
    """Do `action` right before the child's `count`-th call of `name`, and wait little for the device then.

    What does not concern the device keeps its time: a new child's import of TVM, and compiling.
    """
    call, seen = Child.call, [0]

    def watched(child: Child, called: str, *arguments: Any, limit_s: float) -> Any:
        if called == name:
            seen[0] += 1
            if seen[0] == count:
                action()
        if seen[0] >= count and called not in ("ready", "compile"):
            limit_s = min(limit_s, HASTY_S)
        return call(child, called, *arguments, limit_s=limit_s)

    monkeypatch.setattr(Child, "call", watched)


def stopped_then_killed(server: Served) -> None:
    """The server hangs at once and is gone a little later: whoever talks to it is in the middle."""
    os.killpg(server.process.pid, signal.SIGSTOP)
    threading.Timer(0.5, server.kill).start()


@needs_tvm
@pytest.mark.parametrize(
    ("call", "fault", "phase"),
    [
        ("load", stopped_then_killed, "upload"),
        ("time", stopped_then_killed, "run"),
        ("time", lambda server: os.killpg(server.process.pid, signal.SIGSTOP), "run: no answer within 2 s"),
    ],
    ids=["killed during upload", "killed during a run", "hangs"],
)
def test_server_lost_in_the_middle(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: Any, phase: str
) -> None:
    """The run ends with what it has; refused and silent on the second start; whole on the third."""
    with serve() as server:
        device = f"tvm://127.0.0.1:{server.port}?target=llvm&{ONCE}"
        # The float model takes one load and three times; then come the candidates.
        at_call(monkeypatch, call, 2 if call == "load" else 30, lambda: fault(server))
        warned: list[str] = []

        def events(event: Event) -> None:
            if event.phase == "warn":
                warned.append(event.text)

        result = tune(config(place, device), tmp_path, on_event=events)
        monkeypatch.undo()
    assert not result.finished
    failed = [candidate for candidate in result.candidates if candidate.status == "failed"]
    assert failed
    assert f"device {device}: {phase}" in str(failed[0].error)
    assert any(
        f"not measured: {failed[0].name}" in text and device in text and phase in text for text in warned
    )
    assert any(device in text for text in load_report(tmp_path)["warnings"])
    with serve(server.port):
        again = tune(config(place, device), tmp_path)
    check_whole(tmp_path, again, device)
    assert again.resumed == len(again.candidates) - len(failed)


@needs_tvm
def test_refused_and_silent_on_resume(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    device = f"tvm://127.0.0.1:{port}?target=llvm&{ONCE}"
    with serve(port) as server:
        at_call(monkeypatch, "ping", 2, server.kill)
        first = tune(config(place, device), tmp_path)
        monkeypatch.undo()
    lost = [candidate for candidate in first.candidates if candidate.status == "failed"]
    assert lost
    before = records(tmp_path)
    at_call(monkeypatch, "connect", 1, lambda: None)
    refused = tune(config(place, device), tmp_path)
    assert not refused.finished
    assert all(": connect: Connect to" in str(c.error) for c in refused.candidates if c.status == "failed")
    with silent_peer(port):
        silent = tune(config(place, device), tmp_path)
    assert not silent.finished
    assert all(
        ": connect: no answer within 2 s" in str(c.error) for c in silent.candidates if c.status == "failed"
    )
    monkeypatch.undo()
    # Nothing was lost, and nothing was measured: accuracies stand in the journal already.
    assert records(tmp_path) == before
    with serve(port):
        check_whole(tmp_path, tune(config(place, device), tmp_path), device)


@needs_tvm
def test_tracker_restarted(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(track())
        device = f"tvm://127.0.0.1:{tracker.port}?target=llvm&key=dev0&{ONCE}"
        with serve(tracker=tracker.port, key="dev0"):
            at_call(monkeypatch, "compile", 2, tracker.kill)
            result = tune(config(place, device), tmp_path)
            monkeypatch.undo()
            # A session that stands does not need the tracker any more.
            check_whole(tmp_path, result, device)
        other = tmp_path / "other"
        with serve() as alone:
            gone = f"tvm://127.0.0.1:{tracker.port}?target=llvm&key=dev0&{ONCE}"
            with pytest.raises(DeviceError, match=r": connect: .*Connection refused.*a tracker with a"):
                tune(config(place, gone), other)
            assert alone.process.poll() is None
        stack.enter_context(track(tracker.port))
        with serve(tracker=tracker.port, key="dev0"):
            check_whole(other, tune(config(place, gone), other), gone)
