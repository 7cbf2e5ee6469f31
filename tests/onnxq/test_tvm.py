"""TVM on this machine and over RPC, with real servers and trackers on loopback; skipped without TVM."""

from __future__ import annotations

import dataclasses
import os
import signal
import struct
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxq.proof.feeds import made_up_feed
from onnxq.runners import TvmRunner, open_runner, parse_device
from onnxq.runners.agreement import distance, reference_outputs
from onnxq.runners.child import Child, ChildDiedError, ChildFailedError, ChildTimeoutError
from onnxq.runners.lowering import float_weights, lowered
from onnxq.session import load_session
from passes.core.base import Context
from passes.core.errors import DeviceError, UnsupportedModelError
from passes.core.recipe import parse_recipe
from passes.graph.model import Model, load
from tests.rpc import free_port, serve, silent_peer, track

pytest.importorskip("tvm")
QUICK = "connect=3&upload=20&run=20&retries=1"


def ranges(_: Any, tensors: Any) -> dict[str, tuple[float, float]]:
    return {name: (-8.0, 8.0) for name, _ in tensors}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load(tiny)


def recipe(text: str, model: Model) -> Model:
    return parse_recipe(text)(model, Context(ranges=ranges)).model


@pytest.fixture(scope="module")
def variants(model: Model) -> dict[str, Model]:
    """Every kind of file that we write."""
    return {
        "float": model,
        "w8a8": recipe("quantize{weights=int8:channel}", model),
        "gse6": recipe("quantize{weights=gse6 activations=float}", model),
        "int5": recipe("quantize{weights=int5 activations=float}", model),
        "int4 blocks": recipe("quantize{weights=int4:block16 activations=float}", model),
        "w4a8": recipe("quantize{weights=int4:channel}", model),
        "w8a16": recipe("quantize{weights=int8:channel activations=uint16}", model),
    }


KINDS = ["float", "w8a8", "gse6", "int5", "int4 blocks", "w4a8", "w8a16"]


@pytest.mark.parametrize("kind", KINDS)
def test_lowering_keeps_what_is_computed(kind: str, variants: dict[str, Model]) -> None:
    low = lowered(variants[kind], batch=3)
    feed = made_up_feed(low)
    assert feed is not None
    assert feed["x"].shape[0] == 3
    ops = {node.op_type for node in low.proto.graph.node}
    assert all(node.domain in ("", "ai.onnx") for node in low.proto.graph.node)
    assert ("QuantizeLinear" in ops) == (kind in ("w8a8", "w4a8", "w8a16"))
    assert (
        distance(load_session(low, threads=1).run(None, feed), reference_outputs(variants[kind], [feed])[0])
        < 0.02
    )


def test_constants_are_dequantized_exactly(model: Model) -> None:
    quantized = recipe("quantize{weights=int4:block16 activations=float}", model)
    low = float_weights(quantized)
    assert not [node for node in low.proto.graph.node if node.op_type == "DequantizeLinear"]
    assert float_weights(low) is low
    feed = made_up_feed(model)
    assert feed is not None
    assert distance(reference_outputs(low, [feed])[0], reference_outputs(quantized, [feed])[0]) < 1e-6


def test_activations_below_eight_bits_are_refused() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,4] x) => (float[1,4] y)
        <float s = {0.1}, uint4 z = {7}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    with pytest.raises(UnsupportedModelError, match="g: node 'q' quantizes activations to uint4"):
        lowered(Model(parser.parse_model(text), "g"))


@pytest.fixture(scope="module")
def local() -> Any:
    runner = open_runner("tvm:llvm", 1)
    yield runner
    runner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_tvm_agrees_with_onnxruntime(kind: str, variants: dict[str, Model], local: TvmRunner) -> None:
    feed = made_up_feed(variants[kind], batch=2)
    assert feed is not None
    program = local.prepare(variants[kind], batch=2)
    outputs, expected = program.run(feed), reference_outputs(variants[kind], [feed])[0]
    assert distance(outputs, expected) < (0.05 if kind in ("w8a8", "w4a8", "w8a16") else 1e-5)
    assert len(program.time(feed, 3)) == 3
    program.close()


def test_shipped_network_with_both_schedules(local: TvmRunner) -> None:
    model = load(Path(__file__).parents[2] / "models" / "resnet20.onnx")
    feed = made_up_feed(model)
    assert feed is not None
    expected = reference_outputs(model, [feed])[0]
    program = local.prepare(model)
    assert distance(program.run(feed), expected) < 1e-5
    plain = dataclasses.replace(local.device, options={"schedule": "default"})
    runner = TvmRunner(plain, 1)
    assert distance(runner.prepare(model).run(feed), expected) < 1e-5
    runner.close()


def test_what_tvm_cannot_import_is_told(model: Model, local: TvmRunner) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.node[2].op_type = "Det"
    with pytest.raises(DeviceError, match=r"device tvm:llvm: compile: ") as caught:
        local.compile(Model(proto, "det"))
    assert caught.value.lasting


def test_a_tuner_that_crashes_is_told_and_survived(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TVM's own does in the wheel, after a minute: signal 11."""
    runner = TvmRunner(parse_device("tvm:llvm?tune-trials=2"), 1)
    call = Child.call

    def crashing(child: Child, name: str, *arguments: Any, limit_s: float) -> Any:
        if name == "compile" and arguments[2]["trials"]:
            os.killpg(child.pid, signal.SIGSEGV)
        return call(child, name, *arguments, limit_s=limit_s)

    monkeypatch.setattr(Child, "call", crashing)
    program = runner.prepare(model)
    assert (
        "TVM's tuner failed, so the schedule is untuned: TVM: its process ended with signal 11"
        in program.notes[0]
    )
    feed = made_up_feed(model)
    assert feed is not None
    assert distance(program.run(feed), reference_outputs(model, [feed])[0]) < 1e-5
    runner.close()


def test_child_limits() -> None:
    child = Child("tests.slow_child")
    assert child.call("echo", [1, 2], limit_s=30) == [1, 2]
    with pytest.raises(ChildFailedError, match="ValueError: no"):
        child.call("fail", limit_s=30)
    with pytest.raises(ChildTimeoutError, match=r"within 0\.2 s"):
        child.call("hang", limit_s=0.2)
    assert not child.alive
    with pytest.raises(ChildDiedError):
        child.call("echo", 1, limit_s=5)
    other = Child("tests.slow_child")
    with pytest.raises(ChildDiedError, match="signal 9"):
        other.call("die", limit_s=30)
    other.close()


def test_server_and_tracker(model: Model, variants: dict[str, Model]) -> None:
    feed = made_up_feed(model)
    assert feed is not None
    with track() as tracker, serve(tracker=tracker.port, key="dev0"), serve() as server:
        for place in (f"{server.port}?target=llvm", f"{tracker.port}?target=llvm&key=dev0"):
            runner = open_runner(f"tvm://127.0.0.1:{place}&{QUICK}", 1)
            for kind in ("float", "w8a8"):
                program = runner.prepare(variants[kind])
                assert distance(program.run(feed), reference_outputs(variants[kind], [feed])[0]) < 0.05
                assert len(program.time(feed, 4)) == 4
            runner.close()
        other = open_runner(f"tvm://127.0.0.1:{tracker.port}?target=llvm&key=dev1&{QUICK}")
        with pytest.raises(DeviceError, match=r"connect: .*no device with the key 'dev1'; it knows dev0"):
            other.prepare(model)
        other.close()


def test_refused_connection_names_device_and_phase(model: Model) -> None:
    name = f"tvm://127.0.0.1:{free_port()}?target=llvm&{QUICK}"
    runner = open_runner(name)
    with pytest.raises(DeviceError) as caught:
        runner.prepare(model)
    assert (caught.value.device, caught.value.phase, caught.value.lasting) == (name, "connect", False)
    assert "(2 tries)" in str(caught.value)
    runner.close()


def test_a_peer_that_never_answers_is_given_up(model: Model) -> None:
    with silent_peer() as peer:
        runner = open_runner(f"tvm://127.0.0.1:{peer.port}?target=llvm&connect=1")
        with pytest.raises(
            DeviceError, match=r"connect: no answer within 1 s; is python -m tvm\.exec\.rpc_server"
        ):
            runner.prepare(model)
        runner.close()
        assert len(peer.accepted) == 1


def test_server_killed_during_a_run_and_back_again(model: Model) -> None:
    feed = made_up_feed(model)
    assert feed is not None
    with serve() as server:
        runner = open_runner(f"tvm://127.0.0.1:{server.port}?target=llvm&{QUICK}", 1)
        program = runner.prepare(model)
        expected = program.run(feed)
        server.kill()
        with pytest.raises(DeviceError, match=r": run: .*and then connect: "):
            program.run(feed)
        with serve(server.port):
            # The same program, on a new session: it is uploaded anew.
            np.testing.assert_array_equal(program.run(feed)[0], expected[0])
        runner.close()


@pytest.mark.parametrize("kind", ["float", "w8a8"])
def test_mali_cross_compilation(kind: str, variants: dict[str, Model], tmp_path: Path) -> None:
    """OpenCL for Mali and aarch64 host code for Android, read back from the artifact."""
    runner = open_runner("tvm://127.0.0.1:9?target=mali")
    assert isinstance(runner, TvmRunner)
    program = runner.compile(variants[kind])
    assert program.path.suffix == ".tar"  # no NDK here; its compiler makes a .so of the same objects
    with tarfile.open(program.path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    objects = [data for name, data in members.items() if name.endswith(".o")]
    assert objects
    for data in objects:
        assert data[:4] == b"\x7fELF"
        assert struct.unpack("<H", data[18:20])[0] == 183  # EM_AARCH64
    source = runner.sources(program)
    assert source.count("__kernel void") >= 4
    # It is what the artifact carries to the phone.
    assert sum(data.count(b"__kernel void") for data in objects) == source.count("__kernel void")
    # What the Mali driver has; double precision and subgroups of other vendors are not among it.
    pragmas = {
        line.split(":")[0].split()[-1] for line in source.splitlines() if "#pragma OPENCL EXTENSION" in line
    }
    assert pragmas <= {"cl_khr_fp16", "cl_khr_global_int32_base_atomics", "cl_khr_byte_addressable_store"}
    assert "double" not in source
    assert "cl_intel" not in source
    assert "cl_nv" not in source
    runner.close()
    assert not program.path.exists()


def test_clock_of_the_retries_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    runner = TvmRunner(parse_device("tvm://127.0.0.1:9?target=llvm&retries=3"))

    def broken(_: float) -> None:
        raise ChildFailedError("InternalError: Check failed: (x) is false: gone")

    with pytest.raises(DeviceError, match=r"run: gone \(4 tries\)"):
        runner.attempt("run", broken)
    assert pauses == [0.5, 1.0, 2.0]
    runner.close()
