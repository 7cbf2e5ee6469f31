"""ONNX operators in torch, by subject."""

from onnxq.training.ops import convolution, elementwise, linear, movement, normalization
from onnxq.training.ops.registry import OPS, Call

__all__ = ["OPS", "Call", "convolution", "elementwise", "linear", "movement", "normalization"]
