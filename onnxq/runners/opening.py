"""From a device string to its runner."""

from __future__ import annotations

from onnxq.runners.base import Runner
from onnxq.runners.device import parse_device
from onnxq.runners.ort import OrtRunner
from onnxq.runners.tvm import TvmRunner

__all__ = ["open_runner"]


def open_runner(text: str, threads: int | None = None) -> Runner:
    """The runner of a device string; nothing is connected yet.

    threads: where the string names no number; None leaves it to the tool.

    Raises:
        UserError: the string is malformed.
        DeviceError: the tool or the execution provider is not here.
    """
    device = parse_device(text)
    return OrtRunner(device, threads) if device.tool == "ort" else TvmRunner(device, threads)
