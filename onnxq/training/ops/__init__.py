"""ONNX operators in torch, by subject; onnxq/training/network.py imports them all."""

from __future__ import annotations

__all__: list[str] = []
