"""TvmRunner: models compiled by TVM and run on this machine or over RPC, always in a child process.

Every phase (compile, connect, upload, run) has a hard time limit. What fails is tried again on a fresh
child and a fresh session with a growing pause; what exceeds its limit is not, since a device that hung once
would hang again.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from onnxq.data import input_specs
from onnxq.files import Scratch
from onnxq.machine import int8_hardware
from onnxq.runners.base import Array, Feed, first_line
from onnxq.runners.child import Child, ChildDiedError, ChildFailedError, ChildTimeoutError
from onnxq.runners.device import Device
from onnxq.runners.lowering import lowered
from onnxq.runners.tool import Tool
from passes.core.errors import DeviceError
from passes.graph.model import Model, serialize

__all__ = ["Tvm", "TvmProgram", "TvmRunner"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Targets whose device, in TVM's words, is not the CPU.
_DEVICES = {
    "opencl": "opencl",
    "mali": "opencl",
    "mali-linux": "opencl",
    "adreno": "opencl",
    "cuda": "cuda",
    "vulkan": "vulkan",
    "metal": "metal",
}


class TvmProgram:
    """A compiled model; it is loaded anew where the child or the session behind it had to be replaced."""

    def __init__(self, runner: TvmRunner, path: Path, inputs: Sequence[str], notes: Sequence[str]) -> None:
        self._runner, self.path, self._inputs, self.notes = runner, path, tuple(inputs), tuple(notes)
        self._handle, self._session = 0, -1

    def run(self, feed: Feed) -> list[Array]:
        arrays = self._ordered(feed)
        result: list[Array] = self._runner.attempt("run", lambda limit: self._call("run", limit, arrays))
        return result

    def time(self, feed: Feed, runs: int) -> list[float]:
        arrays = self._ordered(feed)
        times: list[float] = self._runner.attempt(
            "run", lambda limit: self._call("time", limit, arrays, runs)
        )
        return times

    def load(self) -> None:
        """Upload and load now, so that a failure is told as one of that phase."""
        self._runner.attempt("upload", lambda _: self._handle_now())

    def close(self) -> None:
        if self._session == self._runner.session and self._handle:
            with contextlib.suppress(ChildDiedError, ChildFailedError, ChildTimeoutError, DeviceError):
                self._runner.child().call("drop", self._handle, limit_s=self._runner.limits.run)
        self._handle, self._session = 0, -1
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def _ordered(self, feed: Feed) -> list[Array]:
        return [feed[name] for name in self._inputs]

    def _call(self, name: str, limit: float, *arguments: Any) -> Any:
        handle = self._handle_now()
        return self._runner.child().call(name, handle, *arguments, limit_s=limit)

    def _handle_now(self) -> int:
        child = self._runner.connected()
        if self._session != self._runner.session:
            with self._runner.phase("upload"):
                limit = self._runner.limits.upload
                self._handle = child.call("load", str(self.path), limit_s=limit)
            self._session = self._runner.session
        return self._handle


class TvmRunner:
    """A device behind TVM.

    threads: of the CPU where the device string names no `cores`; None leaves it to TVM.

    Raises:
        DeviceError: TVM is not installed.
    """

    def __init__(self, device: Device, threads: int | None = None) -> None:
        if find_spec("tvm") is None:
            raise DeviceError(
                device.text, "connect", "TVM is not installed; pip install 'onnxq[tvm]'", lasting=True
            )
        cores = device.number("cores")
        self.device, self.limits = device, device.limits
        self.cores = int(cores) if cores is not None else threads or 0
        self.session = 0
        self._child: Child | None = None
        self._open = False
        self._phase = "connect"
        self._scratch = Scratch()

    @property
    def name(self) -> str:
        return self.device.text

    def prepare(self, model: Model, batch: int = 1) -> TvmProgram:
        if self.device.remote:
            # Before minutes are spent on compiling for a device that is not there.
            self.heartbeat()
        program = self.compile(model, batch)
        program.load()
        return program

    def compile(self, model: Model, batch: int = 1) -> TvmProgram:
        """Compile and leave the artifact in a file; the device is not needed yet.

        Raises:
            DeviceError: TVM cannot import or compile it.
            UnsupportedModelError: it has operators or types that TVM does not know.
        """
        low = lowered(model, batch)
        data, names = serialize(low), [spec.name for spec in input_specs(low.proto)]
        trials = int(self.device.number("tune-trials") or 0)
        notes: list[str] = []
        if trials:
            try:
                return TvmProgram(self, self._compiled(data, trials), names, notes)
            except DeviceError as error:
                notes.append(f"{self.name}: TVM's tuner failed, so the schedule is untuned: {error.problem}")
        return TvmProgram(self, self._compiled(data, 0), names, notes)

    def _compiled(self, data: bytes, trials: int) -> Path:
        options = {
            "cores": self.cores,
            "mcpu": self.device.options.get("mcpu", ""),
            "schedule": self.device.options.get("schedule", "tiled"),
            "trials": trials,
            "ndk": self.device.options.get("ndk", ""),
            "local": not self.device.remote or self.device.host in _LOOPBACK,
        }
        folder = Path(tempfile.mkdtemp(prefix="program-", dir=self._scratch.path))
        try:
            child = self.child()
            return Path(
                child.call(
                    "compile", data, self.device.kind, options, str(folder), limit_s=self.limits.compile
                )
            )
        except ChildFailedError as error:
            raise DeviceError(self.name, "compile", first_line(error), lasting=True) from None
        except (ChildDiedError, ChildTimeoutError) as error:
            self.drop_session()
            raise DeviceError(self.name, "compile", f"TVM: {error}", lasting=True) from None

    def sources(self, program: TvmProgram) -> str:
        """The device code of a program that this child compiled (OpenCL for Mali); empty for CPUs."""
        text: str = self.child().call("sources", str(program.path), limit_s=self.limits.compile)
        return text

    def heartbeat(self) -> None:
        """Raises DeviceError where the device cannot be reached or no longer answers."""
        self.attempt("connect", lambda _: self.connected().call("ping", limit_s=self.limits.connect))

    def close(self) -> None:
        self.drop_session()
        self._scratch.close()

    def child(self) -> Child:
        """The child, started where there is none."""
        if self._child is None or not self._child.alive:
            self.drop_session()
            threads = {"TVM_NUM_THREADS": str(self.cores)} if self.cores else {}
            self._child = Child("onnxq.runners.tvm_child", {**threads, "TVM_BIND_THREADS": "0"})
        return self._child

    def connected(self) -> Child:
        """The child with an open device. Raises the child's errors, in the phase `connect`."""
        child = self.child()
        if not self._open:
            with self.phase("connect"):
                kind = _DEVICES.get(self.device.kind, "cpu")
                if self.device.remote:
                    # The child needs time to import TVM before it can connect.
                    child.call("ready", limit_s=self.limits.compile)
                    place = (self.device.host, self.device.port, self.device.key, kind, self.limits.connect)
                    child.call("connect", *place, limit_s=self.limits.connect)
                else:
                    child.call("open", kind, self.device.options.get("load", ""), limit_s=self.limits.compile)
            self._open = True
            self.session += 1
        return child

    def drop_session(self) -> None:
        """Forget the child; the next call starts another one."""
        if self._child is not None:
            self._child.close()
        self._child, self._open = None, False

    @contextlib.contextmanager
    def phase(self, name: str) -> Any:
        """What fails in the block is told as a failure of this phase."""
        before, self._phase = self._phase, name
        yield
        self._phase = before

    def attempt(self, phase: str, action: Callable[[float], Any]) -> Any:
        """The result of `action`, tried again with a growing pause where it failed.

        Raises:
            DeviceError: it exceeded the phase's limit, or failed every time.
        """
        limit = getattr(self.limits, phase)
        first: tuple[str, str] | None = None
        for again in range(self.limits.retries + 1):
            self._phase = phase
            try:
                return action(limit)
            except (ChildDiedError, ChildFailedError, ChildTimeoutError) as error:
                now = (self._phase, first_line(error))
                self.drop_session()
                # What hung once would hang again; on this machine a second try gives the same answer.
                last = isinstance(error, ChildTimeoutError) or not self.device.remote
                first = first or now
                if last or again == self.limits.retries:
                    raise self._failure(first, now, again + 1) from None
                time.sleep(self.limits.backoff * 2**again)
        raise AssertionError("unreachable")

    def _failure(self, first: tuple[str, str], last: tuple[str, str], tries: int) -> DeviceError:
        """The first failure is the one to tell; what became of trying again stands behind it."""
        phase, problem = first
        told = problem if tries == 1 else f"{problem} ({tries} tries)"
        if last != first:
            told += f"; and then {last[0]}: {last[1]}"
        return DeviceError(self.name, phase, told + self._hint(last[0]))

    def _hint(self, phase: str) -> str:
        if phase == "connect" and self.device.remote:
            what = (
                f"a tracker with a free device of the key {self.device.key!r}"
                if self.device.key
                else "python -m tvm.exec.rpc_server"
            )
            return f"; is {what} running at {self.device.host}:{self.device.port}?"
        return ""


class Tvm(Tool):
    """TVM on this machine and over RPC."""

    name: ClassVar[str] = "tvm"
    title: ClassVar[str] = "TVM"
    forms: ClassVar[tuple[str, ...]] = ("tvm:TARGET", "tvm://HOST:PORT?target=TARGET")
    kind: ClassVar[str] = "target"
    words: ClassVar[tuple[str, ...]] = ("mcpu", "schedule", "ndk", "load")
    numbers: ClassVar[tuple[str, ...]] = ("cores", "tune-trials", "tolerance", "compile", "run")
    remote: ClassVar[bool] = True
    remote_words: ClassVar[tuple[str, ...]] = ("target", "key")
    remote_numbers: ClassVar[tuple[str, ...]] = ("connect", "upload", "retries")
    packages: ClassVar[Mapping[str, str]] = {"apache-tvm": "TVM"}

    def open(self, device: Device, threads: int | None) -> TvmRunner:
        return TvmRunner(device, threads)

    def local(self) -> Sequence[str]:
        return ["tvm:llvm"] if find_spec("tvm") is not None else []

    def what(self, device: Device) -> str:
        if device.remote:
            return "TVM over RPC"
        return f"TVM on {int8_hardware()}" if device.kind == "llvm" else "TVM"
