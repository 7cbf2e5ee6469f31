"""Device strings, ONNX Runtime as a device, agreement with the CPU, and timing in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.proof.feeds import made_up_feed
from onnxq.runners import OrtRunner, open_runner, parse_device
from onnxq.runners.agreement import distance, reference_outputs, refuse_disagreement
from onnxq.runners.base import Array, Feed
from onnxq.runners.providers import CPU
from onnxq.runners.timing import compare, in_turns
from passes.core.base import Context
from passes.core.errors import DeviceError, UserError
from passes.core.recipe import parse_recipe
from passes.graph.model import Model, load


def test_device_strings() -> None:
    device = parse_device("tvm://192.168.1.7:9190?target=mali&key=phone&run=5&retries=1")
    assert (device.tool, device.kind, device.host, device.port, device.key) == (
        "tvm",
        "mali",
        "192.168.1.7",
        9190,
        "phone",
    )
    assert (device.limits.run, device.limits.retries) == (5.0, 1)
    local = parse_device("ort:cuda?threads=2&ep.device_id=1")
    assert not local.remote
    assert local.options == {"threads": "2", "ep.device_id": "1"}
    assert parse_device("tvm://[::1]:9090?target=llvm").host == "::1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cuda", "ort:PROVIDER"),
        ("ort:", "names no execution provider"),
        ("ort://host:1?target=x", "this machine only"),
        ("tvm://host?target=llvm", "needs an address"),
        ("tvm://host:99999?target=llvm", "needs an address"),
        ("tvm://host:9090", "say what it compiles for"),
        ("ort:cpu?thread=2", "did you mean 'threads'"),
        ("ort:cpu?threads=two", "threads=two is not a number"),
        ("tvm:llvm?key=a", "unknown option 'key'"),
        ("tvm:llvm?cores", "name=value"),
        ("ort:cpu?level=most", "level=most is not one of"),
    ],
)
def test_bad_device_strings_are_told(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_runner(text)


def test_missing_provider_is_told() -> None:
    with pytest.raises(DeviceError, match=r"ort:cann: connect: .*no CANNExecutionProvider; it has ort:cpu"):
        open_runner("ort:cann")


@pytest.fixture
def model(tiny: Path) -> Model:
    return load(tiny)


def test_ort_runs_and_times(model: Model) -> None:
    feed = made_up_feed(model, batch=2)
    assert feed is not None
    program = open_runner("ort:cpu?level=basic", 1).prepare(model)
    assert distance(program.run(feed), reference_outputs(model, [feed])[0]) < 1e-5
    assert len(program.time(feed, 3)) == 3


def test_profile_speaks_of_the_models_own_nodes(model: Model) -> None:
    placement = OrtRunner(parse_device("ort:cpu"), 1).profile(model)
    assert {time.node for time in placement.times} >= {"first", "dw", "wide", "fc"}
    assert set(placement.counts()) == {CPU}
    assert placement.unfused == []


def test_profile_of_an_integer_model(model: Model) -> None:
    def ranges(_: Any, tensors: Any) -> dict[str, tuple[float, float]]:
        return {name: (0.0, 8.0) for name, _ in tensors}

    quantized = parse_recipe("fold_batchnorm | quantize")(model, Context(ranges=ranges)).model
    placement = OrtRunner(parse_device("ort:cpu"), 1).profile(quantized)
    kernels = {time.node: time.op for time in placement.times}
    assert kernels["wide"] == "QLinearConv"
    # What quantizes the model's input, and what makes its output float.
    assert len(placement.unfused) <= 3


class _Dropped:
    """A session that ONNX Runtime made without the provider it was asked for."""

    def get_providers(self) -> list[str]:
        return [CPU]


def test_a_provider_that_silently_fell_back_is_an_error(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["XnnpackExecutionProvider", CPU])
    monkeypatch.setattr("onnxq.runners.ort.load_session", lambda *_, **__: _Dropped())
    runner = open_runner("ort:xnnpack")
    with pytest.raises(DeviceError, match="silently fell back to CPUExecutionProvider instead of Xnnpack"):
        runner.prepare(model)


@pytest.mark.skipif("AzureExecutionProvider" not in ort.get_available_providers(), reason="no such provider")
def test_a_provider_that_takes_no_node_is_an_error(model: Model) -> None:
    with pytest.raises(DeviceError, match="took none of the model's nodes"):
        open_runner("ort:AzureExecutionProvider").prepare(model)


class _Liar:
    """A device that computes something else."""

    name = "ort:cpu"
    notes: Sequence[str] = ()

    def __init__(self, program: Any, change: Any) -> None:
        self.program, self.change = program, change

    def run(self, feed: Feed) -> list[Array]:
        return [self.change(output) for output in self.program.run(feed)]

    def time(self, feed: Feed, runs: int) -> list[float]:
        return [1.0] * runs

    def prepare(self, model: Model, batch: int = 1) -> Any:
        return self

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * np.float32(1e15),
        lambda y: y * np.float32(1.01),
        lambda y: y * np.nan,
        lambda y: y[:, :2],
    ],
)
def test_a_device_that_disagrees_is_refused(model: Model, change: Any) -> None:
    feed = made_up_feed(model)
    assert feed is not None
    liar = _Liar(open_runner("ort:cpu").prepare(model), change)
    with pytest.raises(
        DeviceError, match=r"device ort:cpu: compare: refused: its outputs for .*tiny.onnx"
    ) as caught:
        refuse_disagreement(liar, liar, model, [feed])
    assert caught.value.lasting
    honest = _Liar(liar.program, lambda y: y * np.float32(1 + 1e-6))
    assert refuse_disagreement(honest, honest, model, [feed]) < 1e-5


class _Clock:
    """A program whose times are written down beforehand."""

    notes: Sequence[str] = ()

    def __init__(self, times: Sequence[float]) -> None:
        self.times, self.at = list(times), 0

    def run(self, feed: Feed) -> list[Array]:
        return []

    def time(self, feed: Feed, runs: int) -> list[float]:
        taken = [self.times[(self.at + i) % len(self.times)] for i in range(runs)]
        self.at += runs
        return taken

    def close(self) -> None:
        pass


def test_ratio_ignores_a_burst_that_strikes_one_turn() -> None:
    rng = np.random.default_rng(0)
    fast = list(rng.uniform(0.99, 1.01, 20))
    slow = list(rng.uniform(1.98, 2.02, 20))
    fast[7] = 50.0
    found = compare(_Clock(fast), _Clock(slow), {}, runs=20, warmup=0)
    assert found.ratio == pytest.approx(0.5, rel=0.02)
    assert found.outliers == 1
    assert found.runs == 20  # tight after the first round
    assert found.low < 0.5 < found.high
    assert not found.warning


def test_wide_intervals_are_measured_longer() -> None:
    rng = np.random.default_rng(1)
    found = compare(
        _Clock(list(rng.uniform(1, 3, 400))), _Clock([1.0]), {}, runs=10, rounds=5, warmup=0, tight=0.001
    )
    assert found.runs == 50


def test_throttling_is_told() -> None:
    told: list[str] = []
    hot = [1.0] * 10 + [1.6] * 10
    compare(_Clock(hot), _Clock(hot), {}, runs=20, warmup=0, told=told.append)
    compare(_Clock([2.0]), _Clock([1.5]), {}, runs=20, warmup=0, before=1.0, told=told.append)
    assert "1.60 times slower while it was measured" in told[0]
    assert "1.50 times as long as at the start" in told[1]


def test_turns_alternate() -> None:
    order: list[str] = []

    class Named(_Clock):
        def __init__(self, name: str) -> None:
            super().__init__([1.0])
            self.name = name

        def time(self, feed: Feed, runs: int) -> list[float]:
            order.append(self.name)
            return super().time(feed, runs)

    in_turns([Named("a"), Named("b")], [{}, {}], 3)
    assert "".join(order) == "abbaab"
