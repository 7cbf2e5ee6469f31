"""OrtRunner: ONNX Runtime on this machine, with the CPU or any other execution provider.

A provider that takes no node, or that ONNX Runtime dropped while it made the session, is an error: both
leave a session that runs on the CPU and looks as if all were well.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from onnxq.files import scratch_folder
from onnxq.machine import int8_hardware, vnni_warning
from onnxq.proof.feeds import made_up_feed
from onnxq.runners.base import Array, Feed, as_arrays, first_line
from onnxq.runners.device import Device
from onnxq.runners.profile import Placement, read_profile
from onnxq.runners.providers import CPU, PROVIDER_PREFIX, available_providers, configure
from onnxq.runners.tool import Tool
from onnxq.session import load_session
from passes.core.errors import DeviceError, UnsupportedModelError
from passes.graph.model import Model

__all__ = ["Ort", "OrtProgram", "OrtRunner"]

_SHOWN = 5


class OrtProgram:
    """A session and what is known about it."""

    def __init__(self, device: str, session: Any, notes: Sequence[str]) -> None:
        self.device, self.session, self.notes = device, session, tuple(notes)

    def run(self, feed: Feed) -> list[Array]:
        return as_arrays(self._run(dict(feed)))

    def time(self, feed: Feed, runs: int) -> list[float]:
        times, inputs = [], dict(feed)
        for _ in range(runs):
            start = time.perf_counter()
            self._run(inputs)
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def close(self) -> None:
        self.session = None

    def _run(self, inputs: dict[str, Array]) -> Any:
        try:
            return self.session.run(None, inputs)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise DeviceError(self.device, "run", first_line(error), lasting=True) from None


class OrtRunner:
    """ONNX Runtime with one execution provider.

    threads: of a session, where the device string names no number; None leaves it to ONNX Runtime.
    """

    def __init__(self, device: Device, threads: int | None = None) -> None:
        self.device = device
        given = device.number("threads")
        self.threads = threads if given is None else int(given)
        self.provider, _ = configure(device)

    @property
    def name(self) -> str:
        return self.device.text

    def prepare(self, model: Model, batch: int = 1) -> OrtProgram:
        _, apply = configure(self.device)
        session = load_session(model, threads=self.threads, configure=apply)
        self._check_provider(session)
        notes: list[str] = []
        if self.provider != CPU:
            notes.extend(self._fallen_back(self.profile(model, batch)))
        warning = vnni_warning()
        if warning and self.provider == CPU and _has_quantized_activations(model):
            notes.append(warning)
        return OrtProgram(self.name, session, notes)

    def profile(self, model: Model, batch: int = 1, runs: int = 1, feed: Feed | None = None) -> Placement:
        """Kernels, their times and providers, under the model's own node names.

        Raises:
            UnsupportedModelError: no input can be made up for the model, and `feed` is None.
        """
        inputs = made_up_feed(model, batch) if feed is None else feed
        if inputs is None:
            raise UnsupportedModelError(
                f"{model.name}: no input can be made up for it, so it cannot be profiled"
            )
        with scratch_folder() as folder:
            _, apply = configure(self.device, folder / "ort")
            session = load_session(model, threads=self.threads, configure=apply)
            self._check_provider(session)
            program = OrtProgram(self.name, session, ())
            for _ in range(runs):
                program.run(inputs)
            return read_profile(Path(session.end_profiling()), model)

    def close(self) -> None:
        pass

    def _check_provider(self, session: Any) -> None:
        used = session.get_providers()
        if self.provider not in used:
            raise DeviceError(
                self.name,
                "connect",
                f"ONNX Runtime silently fell back to {', '.join(used)} instead of {self.provider}: "
                "its driver or a library is missing, or it refused an option; the log above says which",
                lasting=True,
            )

    def _fallen_back(self, placement: Placement) -> list[str]:
        """Notes about nodes on the CPU.

        Raises:
            DeviceError: every node is there.
        """
        left = placement.on(CPU)
        if len(left) == len(placement.times):
            raise DeviceError(
                self.name,
                "compile",
                f"{self.provider} took none of the model's nodes, all {len(left)} kernels ran on the CPU",
                lasting=True,
            )
        if not left:
            return []
        ops = Counter(time.op for time in left)
        kinds = ", ".join(f"{count} {op}" for op, count in ops.most_common(_SHOWN))
        names = ", ".join(time.node for time in left[:_SHOWN])
        share = f"{len(left)} of {len(placement.times)} kernels"
        return [f"{self.name}: {share} fell back to the CPU ({kinds}): {names}"]


def _has_quantized_activations(model: Model) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in model.proto.graph.node)


class Ort(Tool):
    """ONNX Runtime on this machine."""

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime"
    forms: ClassVar[tuple[str, ...]] = ("ort:PROVIDER",)
    kind: ClassVar[str] = "execution provider"
    words: ClassVar[tuple[str, ...]] = ("level", "precision", "library", "name")
    numbers: ClassVar[tuple[str, ...]] = ("threads", "tolerance")
    prefix: ClassVar[str] = PROVIDER_PREFIX

    def open(self, device: Device, threads: int | None) -> OrtRunner:
        return OrtRunner(device, threads)

    def local(self) -> Sequence[str]:
        return [f"{self.name}:{kind}" for kind in available_providers()]

    def what(self, device: Device) -> str:
        return f"{self.title} on {int8_hardware()}" if device.text == "ort:cpu" else self.title
