"""Devices: ONNX Runtime, TVM and tools of installed packages behind one protocol. See docs/DEVICES.md."""

from onnxq.runners.base import Feed, Program, Runner
from onnxq.runners.device import Device
from onnxq.runners.opening import TOOLS, open_runner, parse_device, tools
from onnxq.runners.ort import OrtRunner
from onnxq.runners.tool import Tool
from onnxq.runners.tvm import TvmRunner

__all__ = [
    "TOOLS",
    "Device",
    "Feed",
    "OrtRunner",
    "Program",
    "Runner",
    "Tool",
    "TvmRunner",
    "open_runner",
    "parse_device",
    "tools",
]
