"""Execution providers of ONNX Runtime: their names, which are here, and how a session is told to use one."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxq.runners.device import Device
from passes.core.errors import DeviceError, UserError

__all__ = ["CPU", "PROVIDER_PREFIX", "available_providers", "configure", "provider_name"]

CPU = "CPUExecutionProvider"
# Options of an execution provider itself are passed on under this prefix: `ep.device_id=1`.
PROVIDER_PREFIX = "ep."
_NAMES = {
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
# Providers that come as a package of their own with a library to register (get_library_path, get_ep_name).
_PLUGINS = {"openvino": "onnxruntime_ep_openvino"}
_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_AZURE = "AzureExecutionProvider"
_registered: dict[str, str] = {}
_guard = threading.Lock()


def provider_name(kind: str) -> str:
    """`cuda` -> `CUDAExecutionProvider`; a full name stays as it is."""
    return _NAMES.get(kind.lower(), kind)


def available_providers() -> list[str]:
    """Short names of the providers that a session here could be given, plug-ins included.

    Azure's is left out: it sends requests to a service and computes nothing itself.
    """
    short = {name: kind for kind, name in _NAMES.items()}
    built_in = [short.get(name, name) for name in ort.get_available_providers() if name != _AZURE]
    plugins = [kind for kind, module in _PLUGINS.items() if kind not in built_in and find_spec(module)]
    return sorted([*built_in, *plugins], key=lambda kind: (kind != "cpu", kind))


def configure(device: Device, profile: Path | None = None) -> tuple[str, Callable[[ort.SessionOptions], Any]]:
    """The provider's full name, and what sets a session's options to use it.

    profile: prefix of the profile file to write.

    Raises:
        DeviceError: the provider is not in this ONNX Runtime, or its library cannot be registered.
        UserError: an option has no such value.
    """
    level = device.options.get("level", "all")
    if level not in _LEVELS:
        raise UserError(f"device {device.text}: level={level} is not one of {', '.join(_LEVELS)}")
    given = {
        key.removeprefix(PROVIDER_PREFIX): value
        for key, value in device.options.items()
        if key.startswith(PROVIDER_PREFIX)
    }
    plugin = _plugin(device)
    name = plugin or provider_name(device.kind)
    if plugin is None and name not in ort.get_available_providers():
        here = ", ".join(f"ort:{kind}" for kind in available_providers())
        raise DeviceError(
            device.text,
            "connect",
            f"this ONNX Runtime has no {name}; it has {here} (another build of onnxruntime brings more)",
            lasting=True,
        )
    options_of_provider = {**_precision(device, name, plugin is not None), **given}

    def apply(options: ort.SessionOptions) -> Sequence[Any]:
        if level != "all":
            options.graph_optimization_level = _LEVELS[level]
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if plugin is None:
            return [(name, options_of_provider)] if options_of_provider else [name]
        devices = [found for found in ort.get_ep_devices() if found.ep_name == plugin]
        options.add_provider_for_devices(devices[:1], options_of_provider)
        return []

    return name, apply


def _precision(device: Device, name: str, plugin: bool) -> dict[str, str]:
    """OpenVINO computes in bf16 where the CPU has it; here it computes in f32 unless it is told otherwise."""
    if name != _NAMES["openvino"] and device.kind != "openvino":
        return {}
    wanted = device.options.get("precision", "f32")
    hint = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": wanted}})
    return {"load_config": hint} if plugin else {"device_type": "CPU", "load_config": hint}


def _plugin(device: Device) -> str | None:
    """Register the plug-in library behind a device, once per process; its provider's name, None for
    built-ins.
    """
    library, name = device.options.get("library", ""), device.options.get("name", "")
    if not library:
        package = _PLUGINS.get(device.kind)
        if package is None or provider_name(device.kind) in ort.get_available_providers():
            return None
        if find_spec(package) is None:
            return None
        module = importlib.import_module(package)
        library, name = str(module.get_library_path()), str(module.get_ep_name())
    with _guard:
        if library not in _registered:
            try:
                ort.register_execution_provider_library(device.kind, library)
            except (AttributeError, RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail) as error:
                raise DeviceError(
                    device.text,
                    "connect",
                    f"its library {library} cannot be registered: {error}",
                    lasting=True,
                ) from None
            _registered[library] = name or device.kind
        found = _registered[library]
    if not any(each.ep_name == found for each in ort.get_ep_devices()):
        offered = sorted({each.ep_name for each in ort.get_ep_devices()})
        raise DeviceError(
            device.text,
            "connect",
            f"{library} offers no device of the provider {found!r}; there are {', '.join(offered)}",
            lasting=True,
        )
    return found
