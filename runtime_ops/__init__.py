"""The number formats: numpy references, the ONNX functions of `ai.onnxq`, and their C++ kernels."""

from __future__ import annotations

from runtime_ops.bitpack import pack_bits, unpack_bits
from runtime_ops.gse import (
    GSETensor,
    decode_affine,
    decode_gse,
    encode_gse,
    gse_bits,
    quantize_groups,
)
from runtime_ops.integer import (
    IntegerFormat,
    QuantizedTensor,
    affine_parameters,
    dequantize,
    quantize,
    symmetric_scale,
)
from runtime_ops.library import library_status, register

__all__ = [
    "GSETensor",
    "IntegerFormat",
    "QuantizedTensor",
    "affine_parameters",
    "decode_affine",
    "decode_gse",
    "dequantize",
    "encode_gse",
    "gse_bits",
    "library_status",
    "pack_bits",
    "quantize",
    "quantize_groups",
    "register",
    "symmetric_scale",
    "unpack_bits",
]
