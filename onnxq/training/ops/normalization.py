"""Normalizations, softmax and dropout: what knows training from inference."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxq.training.ops.registry import Call, Listed, Optional, Tensor, register

__all__: list[str] = []


@register("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Statistics of the batch in training, which move mean and variance in place (momentum: torch's is one
    less ONNX's); the stored ones otherwise."""
    momentum = 1.0 - call.get("momentum", 0.9)
    eps = call.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, scale, shift, call.training, momentum, eps)


@register("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=shift, eps=call.get("epsilon", 1e-5))


@register("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, shift: Optional = None) -> Tensor:
    axis = call.get("axis", -1) % x.ndim
    normal = functional.layer_norm(x, x.shape[axis:], eps=call.get("epsilon", 1e-5)) * scale
    return normal if shift is None else normal + shift


@register("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Before opset 21 scale and shift are one a group."""
    groups = call.attrs["num_groups"]
    if scale.numel() == groups and groups != x.shape[1]:
        repeats = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
    return functional.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


@register("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axis = call.get("axis", -1) % x.ndim
    return functional.rms_norm(x, x.shape[axis:], eps=call.get("epsilon", 1e-5)) * scale


@register("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    return functional.normalize(x, p=float(call.get("p", 2)), dim=call.get("axis", -1))


def _flattened(call: Call, x: Tensor) -> tuple[Tensor, int]:
    """Before opset 13 softmax runs over all axes from `axis` on."""
    axis = call.get("axis", -1 if call.opset >= 13 else 1)
    return (x, axis) if call.opset >= 13 else (x.flatten(axis % x.ndim), -1)


@register("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    flat, axis = _flattened(call, x)
    return torch.softmax(flat, axis).reshape(x.shape)


@register("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    flat, axis = _flattened(call, x)
    return torch.log_softmax(flat, axis).reshape(x.shape)


@register("Dropout", listed=(1, 2))
def dropout(call: Call, x: Tensor, ratio: Listed = None, _mode: Listed = None) -> Tensor:
    """The ratio is an attribute before opset 12. The training_mode of the file is left to the network."""
    share = call.get("ratio", 0.5) if not ratio else float(ratio[0])
    return functional.dropout(x, share, call.training)
