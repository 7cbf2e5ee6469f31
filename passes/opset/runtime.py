"""What the installed ONNX Runtime runs: its newest opset with Q/DQ kernels, and its kernels; asked once."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import defs, helper, parser

from passes.opset.schemas import STANDARD, newest

__all__ = ["lacks_kernel", "newest_runtime_opset"]

_OPEN = 2**31 - 1

_PROBE = """<ir_version: {ir}, opset_import: ["" : {opset}]> probe (float[2] x) => (float[2] y)
    <float s = {{0.5}}, uint8 z = {{3}}> {{ q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }}"""


def _runs(opset: int) -> bool:
    import onnxruntime as ort

    ir = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    model: onnx.ModelProto = parser.parse_model(_PROBE.format(ir=ir, opset=opset))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - onnxruntime's errors have no class in common; any of them is a no
        return False
    return True


@cache
def newest_runtime_opset() -> int:
    """The newest opset that onnx knows and at which the installed ONNX Runtime runs QuantizeLinear."""
    return next((opset for opset in range(newest(), 9, -1) if _runs(opset)), 0)


@cache
def _kernels() -> dict[str, list[tuple[int, int]]]:
    """Operator -> (first, last) versions of each CPU kernel; empty if ONNX Runtime does not list them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    versions: dict[str, list[tuple[int, int]]] = {}
    for kernel in getattr(state, "get_all_opkernel_def", list)():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in STANDARD:
            versions.setdefault(kernel.op_name, []).append(kernel.version_range)
    return versions


def lacks_kernel(older: defs.OpSchema, newer: defs.OpSchema) -> bool:
    """Whether ONNX Runtime has a kernel for the older schema and none for the newer.

    A kernel without a last version serves the schema of its first version only.
    """

    def runs(schema: defs.OpSchema) -> bool:
        version, known = schema.since_version, _kernels().get(schema.name, [])
        return any(first == version or first < version <= last != _OPEN for first, last in known)

    bodies = ("has_function", "has_context_dependent_function")  # ONNX Runtime expands these
    return runs(older) and not runs(newer) and not any(getattr(newer, name, False) for name in bodies)
