"""Operators that work value by value, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from onnxq.training.ops.registry import OPS, Call, Operator, Optional, Tensor, register

__all__: list[str] = []


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def operator(_: Call, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return operator


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": functional.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
OPS.update({name: Operator(_plain(function)) for name, function in _PLAIN.items()})


@register("Div")
def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers divide towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@register("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@register("Pow")
def power(_: Call, base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent.to(base.dtype))


@register("Min")
def minimum(_: Call, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = torch.minimum(first, other)
    return first


@register("Max")
def maximum(_: Call, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = torch.maximum(first, other)
    return first


@register("Sum")
def total(_: Call, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = first + other
    return first


@register("Mean")
def mean(call: Call, *inputs: Tensor) -> Tensor:
    return total(call, *inputs) / len(inputs)


@register("Clip")
def clip(call: Call, x: Tensor, low: Optional = None, high: Optional = None) -> Tensor:
    """Bounds are attributes before opset 11."""
    below, above = (call.get("min"), call.get("max")) if call.opset < 11 else (low, high)
    if below is not None:
        x = torch.clamp(x, min=below)
    return x if above is None else torch.clamp(x, max=above)


@register("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@register("PRelu")
def prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """The slope broadcasts as in ONNX, from the last axis."""
    return torch.where(x < 0, x * slope, x)


@register("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


@register("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@register("HardSwish")
def hard_swish(_: Call, x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@register("Mish")
def mish(_: Call, x: Tensor) -> Tensor:
    return functional.mish(x)


@register("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@register("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@register("IsNaN")
def is_nan(_: Call, x: Tensor) -> Tensor:
    return torch.isnan(x)


@register("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    up, down = call.get("detect_positive", 1), call.get("detect_negative", 1)
    return ((x == math.inf) & bool(up)) | ((x == -math.inf) & bool(down))
