"""ONNX to a TVM executable. Runs in a child process (tvm_child.py), for TVM may crash or hang.

On a CPU the default pipeline is replaced by one that converts convolutions to NHWC and applies
tvm_schedule.Tiled; `schedule=default` in the device string keeps TVM's own. GPUs get TVM's pipeline with
dlight's schedules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.s_tir import dlight
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

from onnxq.machine import all_flags
from onnxq.runners.host_cpu import hidden_features
from onnxq.runners.tvm_schedule import Tiled

__all__ = ["compiled", "exported", "imported", "named_target"]

_ANDROID = {"kind": "llvm", "mtriple": "aarch64-linux-android"}
_ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "llvm": ({"kind": "llvm"}, None),
    "android": (_ANDROID, None),
    "aarch64": (_ARM, None),
    "opencl": ({"kind": "opencl"}, {"kind": "llvm"}),
    "cuda": ({"kind": "cuda"}, {"kind": "llvm"}),
    "vulkan": ({"kind": "vulkan"}, {"kind": "llvm"}),
    "metal": ({"kind": "metal"}, {"kind": "llvm"}),
    "mali": ({"kind": "opencl", "device": "mali"}, _ANDROID),
    "mali-linux": ({"kind": "opencl", "device": "mali"}, _ARM),
    "adreno": ({"kind": "opencl", "device": "adreno"}, _ANDROID),
}
_BEFORE, _BEHIND = "maximum", "minimum"
# 1.5 * 2^23: added and taken away again, it leaves a float32 below 2^22 rounded to the nearest whole number.
_MAGIC = 12582912.0


def named_target(kind: str, *, cores: int, mcpu: str, local: bool) -> Any:
    """The Target of a preset, of inline JSON, or of `@FILE` with JSON.

    cores: 0 leaves it to TVM. mcpu: empty means this machine's CPU where the code runs here, else generic.

    Raises:
        ValueError: there is no such preset or the JSON is none.
    """
    if kind.startswith(("{", "@")):
        text = Path(kind[1:]).read_text(encoding="utf-8") if kind.startswith("@") else kind
        description, host = json.loads(text), None
        host = description.pop("host", None)
    elif kind in _PRESETS:
        description, host = (None if part is None else dict(part) for part in _PRESETS[kind])
    else:
        raise ValueError(
            f"unknown target {kind!r}; there are {', '.join(sorted(_PRESETS))}, JSON, or @FILE with JSON"
        )
    assert description is not None
    for cpu in (description, host):
        if cpu is None or cpu.get("kind") != "llvm":
            continue
        if mcpu:
            cpu["mcpu"] = mcpu
        elif local and "mtriple" not in cpu and "mcpu" not in cpu:
            cpu.update(_this_machine())
        if cores:
            cpu["num-cores"] = cores
    if host is None and description["kind"] != "llvm":
        host = {"kind": "llvm"}
    return (
        tvm.target.Target(description, host=tvm.target.Target(host))
        if host
        else tvm.target.Target(description)
    )


def _this_machine() -> dict[str, Any]:
    """The CPU of this machine, less the instructions that its hypervisor hides."""
    mcpu = str(llvm_get_system_cpu())
    known = map(str, llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": mcpu})))
    hidden = [f"-{name}" for name in hidden_features(known, all_flags())]
    return {"mcpu": mcpu, **({"mattr": hidden} if hidden else {})}


@relax.expr_functor.mutator
class _Elementwise(relax.PyExprMutator):  # type: ignore[misc]
    """Clip, Q and DQ as operators that layout conversion can move and fusion can join.

    The importer makes Clip two opaque kernels, and TVM would put transposes around them and around Q and DQ.
    """

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if name == "relax.call_tir":
            kernel, inputs = call.args[0].name_hint, call.args[1]
            fields = list(inputs.fields) if isinstance(inputs, relax.Tuple) else []
            if len(fields) == 2 and kernel.startswith(_BEFORE):
                return relax.op.maximum(*fields)
            if len(fields) == 2 and kernel.startswith(_BEHIND):
                return relax.op.minimum(*fields)
        elif name == "relax.quantize" and _scalars(call):
            x, scale, zero = call.args
            kind = str(call.attrs.out_dtype)
            low, high = _range(kind)
            middle = float(zero.value.numpy())
            # relax.op.clip has no rule for layouts.
            scaled = relax.op.maximum(relax.op.divide(x, scale), _number(low - middle))
            limited = relax.op.minimum(scaled, _number(high - middle))
            # Half to even, as ONNX has it; relax.op.round is half away from zero and has no vector
            # instruction. The maximum changes nothing; without it TVM simplifies the sum and the difference
            # away.
            whole = relax.op.maximum(relax.op.add(limited, _number(_MAGIC)), _number(_MAGIC / 2))
            rounded = relax.op.subtract(whole, _number(_MAGIC))
            return relax.op.astype(relax.op.add(rounded, _number(middle)), kind)
        elif name == "relax.dequantize" and _scalars(call):
            x, scale, zero = call.args
            middle = _number(float(zero.value.numpy()))
            return relax.op.multiply(relax.op.subtract(relax.op.astype(x, "float32"), middle), scale)
        return call


def _number(value: float) -> Any:
    return relax.const(value, "float32")


def _scalars(call: Any) -> bool:
    """Whether scale and zero point are single numbers; others are left to TVM."""
    return all(
        isinstance(each, tvm.ir.GenericConst) and each.value.numpy().ndim == 0 for each in call.args[1:3]
    )


def _range(kind: str) -> tuple[int, int]:
    bits, signed = int(kind.lstrip("uint")), not kind.startswith("u")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@relax.expr_functor.mutator
class _Constants(relax.PyExprMutator):  # type: ignore[misc]
    """Layout changes and small arithmetic of constants, by numpy: TVM compiles a kernel for each of them."""

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        work = _FOLDED.get(getattr(call.op, "name", ""))
        if work is None:
            return call
        arrays = []
        for argument in call.args:
            held = self.lookup_binding(argument) if isinstance(argument, relax.Var) else argument
            if isinstance(held, tvm.ir.GenericConst):
                arrays.append(held.value.numpy())
            elif not isinstance(argument, relax.ShapeExpr):
                return call
        result = np.asarray(work(call, *arrays))
        return relax.const(np.ascontiguousarray(result).reshape(result.shape), str(call.ty.dtype.dtype))


def _permuted(call: Any, array: Any) -> Any:
    axes = call.attrs.axes
    return np.transpose(array, None if axes is None else [int(axis) for axis in axes])


_FOLDED: dict[str, Callable[..., Any]] = {
    "relax.permute_dims": _permuted,
    "relax.reshape": lambda call, array: array.reshape([int(size) for size in call.args[1].values]),
    "relax.expand_dims": lambda call, array: np.expand_dims(
        array, tuple(int(axis) for axis in call.attrs.axis)
    ),
    "relax.astype": lambda call, array: array.astype(str(call.attrs.dtype)),
    "relax.isnan": lambda _, array: np.isnan(array),
    "relax.where": lambda _, chosen, yes, no: np.where(chosen, yes, no),
    "relax.sqrt": lambda _, array: np.sqrt(array),
    "relax.add": lambda _, one, other: one + other,
}


@tvm.transform.module_pass(opt_level=0)
class _FoldByNumpy:
    def transform_module(self, module: Any, _context: Any) -> Any:
        return _visited(module, _Constants)


def _visited(module: Any, kind: Any) -> Any:
    mutator = kind(module)
    for variable, function in list(module.functions_items()):
        if isinstance(function, relax.Function):
            module[variable] = mutator.visit_expr(function)
    return relax.transform.DeadCodeElimination()(module)


def imported(data: bytes) -> Any:
    """The Relax module of a lowered model (lowering.py); weights are constants in it."""
    module = from_onnx(onnx.ModelProto.FromString(data))
    return _visited(_visited(module, _Elementwise), _Constants)


def _cpu_pipeline(target: Any) -> Any:
    from tvm.relax.backend.cpu_generic import pipeline as cpu

    change = relax.transform
    return tvm.transform.Sequential(
        [
            change.DecomposeOpsForInference(),
            change.CanonicalizeBindings(),
            change.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]}),
            change.Normalize(),
            _FoldByNumpy(),
            change.FoldConstant(),
            *cpu.library_dispatch_passes(target),
            change.LegalizeOps(),
            change.AnnotateTIROpPattern(),
            change.FoldConstant(),
            change.FuseOps(),
            change.FuseTIR(),
            dlight.ApplyDefaultSchedule(Tiled()),
            *cpu.dataflow_lower_passes(target),
            *cpu.finalize_passes(target),
        ]
    )


def compiled(data: bytes, target: Any, schedule: str = "tiled", trials: int = 0, folder: str = "") -> Any:
    """The executable. schedule: tiled or default, of CPUs. trials: of TVM's tuner, whose log goes to
    `folder`.
    """
    module = imported(data)
    with target:
        if trials:
            tuned = relax.pipeline.static_shape_tuning_pipeline(
                total_trials=trials, target=target, work_dir=folder, max_trials_per_task=max(1, trials // 8)
            )
            return tvm.compile(tuned(module), target)
        if target.kind.name == "llvm":
            if schedule == "tiled":
                return tvm.compile(module, target, relax_pipeline=_cpu_pipeline(target))
            return tvm.compile(module, target)
        return tvm.compile(module, target, relax_pipeline=relax.get_default_pipeline(target))


def exported(executable: Any, folder: Path, *, android: bool, local: bool, ndk: str) -> Path:
    """The executable as a file to upload: a shared library where a linker is at hand, else a .tar of objects.

    ndk: path of an NDK compiler (`aarch64-linux-android28-clang++`) for Android; a server on Linux links a
    .tar
    itself.
    """
    from tvm.support import cc
    from tvm.support import ndk as android_linker

    if android and ndk:
        os.environ["TVM_NDK_CC"] = ndk
        path = folder / "model.so"
        executable.export_library(str(path), fcompile=android_linker.create_shared)
        return path
    linker = cc.get_cc() if local and not android else None
    path = folder / ("model.so" if linker else "model.tar")
    executable.export_library(str(path))
    return path


def described(target: Any) -> Mapping[str, Any]:
    return {"target": str(target)}
