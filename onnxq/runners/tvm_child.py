"""The process that holds TVM: compiles, connects, uploads, runs and times. Served by child.py."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import IO, Any

from onnxq.runners.child import read_message, write_message
from onnxq.signals import die_with_parent

__all__ = ["main"]


class _Tvm:
    """What the parent may call. Handles are small numbers; they die with the process or the session."""

    def __init__(self) -> None:
        self.machines: dict[int, Any] = {}
        self.device: Any = None
        self.session: Any = None
        self.next = 0
        self.sources_of: dict[str, str] = {}

    def compile(self, data: bytes, kind: str, options: dict[str, Any], folder: str) -> str:
        """The artifact's path."""
        from onnxq.runners.tvm_compile import compiled, exported, named_target

        local = bool(options["local"])
        target = named_target(kind, cores=options["cores"], mcpu=options["mcpu"], local=local)
        executable = compiled(data, target, options["schedule"], options["trials"], folder)
        android = "android" in str(target.host or target)
        path = exported(executable, Path(folder), android=android, local=local, ndk=options["ndk"])
        self.sources_of[str(path)] = "\n".join(_device_sources(executable.mod))
        return str(path)

    def sources(self, path: str) -> str:
        """The device code beside the host's, as it was compiled."""
        return self.sources_of.get(path, "")

    def ready(self) -> str:
        """TVM's version, once it is imported."""
        import tvm

        return str(tvm.__version__)

    def open(self, kind: str, library: str) -> None:
        """Take a device of this machine."""
        import tvm

        if library:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        device = tvm.runtime.device(kind, 0)
        if not device.exist:
            raise RuntimeError(
                f"this TVM has no {kind} runtime or the machine has no such device; where the runtime is a "
                "library of its own (libtvm_runtime_opencl.so), name it with load=PATH"
            )
        self.device = device

    def connect(self, host: str, port: int, key: str, kind: str, limit_s: float) -> None:
        """Open a session on an RPC server, or on a free server of a tracker's pool."""
        from tvm import rpc

        if key:
            # TVM itself would try an address without a tracker for a minute, and wait for a missing key for
            # ever.
            socket.create_connection((host, port), timeout=limit_s).close()
            tracker = rpc.connect_tracker(host, port)
            pool = {entry["key"] for entry in tracker.summary()["server_info"]}
            if f"server:{key}" not in pool:
                known = ", ".join(sorted(name.partition(":")[2] for name in pool)) or "none at all"
                raise LookupError(f"the tracker knows no device with the key {key!r}; it knows {known}")
            self.session = tracker.request(key, max_retry=1)
        else:
            self.session = rpc.connect(host, port)
        self.device = self.session.device(kind)

    def ping(self) -> bool:
        """Heartbeat: whether the session still answers."""
        if self.session is not None:
            self.session.get_function("runtime.GetDeviceAttr")
        return True

    def load(self, path: str) -> int:
        """Upload an artifact where there is a session; a handle of its virtual machine."""
        import tvm
        from tvm import relax

        if self.session is None:
            module = tvm.runtime.load_module(path)
        else:
            name = f"onnxq-{self.next}{Path(path).suffix}"
            self.session.upload(path, target=name)
            module = self.session.load_module(name)
        self.next += 1
        self.machines[self.next] = relax.VirtualMachine(module, self.device)
        return self.next

    def drop(self, handle: int) -> None:
        self.machines.pop(handle, None)

    def run(self, handle: int, inputs: list[Any]) -> list[Any]:
        machine = self._fed(handle, inputs)
        machine.invoke_stateful("main")
        return [output.numpy() for output in _flat(machine.get_outputs("main"))]

    def time(self, handle: int, inputs: list[Any], runs: int) -> list[float]:
        machine = self._fed(handle, inputs)
        timer = machine.time_evaluator("invoke_stateful", self.device, number=1, repeat=runs)
        return [1e3 * seconds for seconds in timer("main").results]

    def _fed(self, handle: int, inputs: list[Any]) -> Any:
        import tvm

        machine = self.machines[handle]
        machine.set_input("main", *[tvm.runtime.tensor(value, self.device) for value in inputs])
        return machine


def _device_sources(module: Any) -> list[str]:
    """The sources of all modules behind this one that hold code for a device."""
    found = [module.inspect_source()] if str(module.kind) not in ("llvm", "relax.VMExecutable") else []
    return found + [text for part in module.imports for text in _device_sources(part)]


def _flat(outputs: Any) -> list[Any]:
    if hasattr(outputs, "numpy"):
        return [outputs]
    return [item for output in outputs for item in _flat(output)]


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """The two ends of the talk; what anybody prints goes to standard error instead."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    # A call that hangs in C never sees the end of its input.
    die_with_parent()
    # TVM imports torch where it finds it, which takes longer than TVM itself, and nothing here needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    requests, answers = _streams()
    tvm = _Tvm()
    while True:
        try:
            name, arguments = read_message(requests)
        except EOFError:
            return
        try:
            answer = ("ok", getattr(tvm, name)(*arguments))
        except Exception as error:  # noqa: BLE001 - whatever TVM throws is the answer
            answer = ("error", f"{type(error).__name__}: {error}")
        write_message(answers, answer)
