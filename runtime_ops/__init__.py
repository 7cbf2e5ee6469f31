"""The number formats: numpy references (and, later, the ONNX function body and C++ kernel of GSE)."""

from __future__ import annotations

from runtime_ops.integer import (
    IntegerFormat,
    QuantizedTensor,
    affine_parameters,
    dequantize,
    quantize,
    symmetric_scale,
)

__all__ = [
    "IntegerFormat",
    "QuantizedTensor",
    "affine_parameters",
    "dequantize",
    "quantize",
    "symmetric_scale",
]
