"""Devices: ONNX Runtime and TVM behind one protocol. See docs/DEVICES.md."""

from onnxq.runners.base import Feed, Program, Runner
from onnxq.runners.device import Device, parse_device
from onnxq.runners.opening import open_runner
from onnxq.runners.ort import OrtRunner
from onnxq.runners.tvm import TvmRunner

__all__ = ["Device", "Feed", "OrtRunner", "Program", "Runner", "TvmRunner", "open_runner", "parse_device"]
