"""What the installed ONNX Runtime can quantize at: asked once, by making small sessions."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import helper, parser

from passes.opset.schemas import newest

__all__ = ["newest_runtime_opset"]

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
    except Exception:  # onnxruntime's errors have no class in common; any of them means that it does not run
        return False
    return True


@cache
def newest_runtime_opset() -> int:
    """The newest opset that onnx knows and at which the installed ONNX Runtime runs QuantizeLinear."""
    return next((opset for opset in range(newest(), 9, -1) if _runs(opset)), 0)
