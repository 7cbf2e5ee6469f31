"""Operators that move, cut, gather and reduce: shapes and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch.nn import functional

from onnxq.training.ops.registry import OPS, Call, Listed, Operator, Tensor, register

__all__ = ["torch_type"]


def torch_type(element: int) -> torch.dtype:
    """The torch type of an ONNX element type."""
    name = str(onnx.helper.tensor_dtype_to_np_dtype(element))
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no tensors of {name}")
    return found


@register("Identity")
def identity(_: Call, x: Tensor) -> Tensor:
    return x


@register("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return x.to(torch_type(call.attrs["to"]))


@register("CastLike")
def cast_like(_: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@register("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    sizes = list(x.shape)[call.get("start", 0) : call.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


@register("Size")
def size(_: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@register("Reshape", listed=(1,))
def reshape(call: Call, x: Tensor, target: list[int]) -> Tensor:
    wanted = target
    if not call.get("allowzero", 0):
        wanted = [x.shape[axis] if edge == 0 else edge for axis, edge in enumerate(wanted)]
    return x.reshape(wanted)


@register("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for edge in x.shape[:axis]:
        rows *= edge
    return x.reshape(rows, -1)


@register("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or list(reversed(range(x.ndim))))


def _axes(call: Call, given: Listed) -> list[int]:
    return list(call.get("axes") or []) if given is None else given


@register("Squeeze", listed=(1,))
def squeeze(call: Call, x: Tensor, axes: Listed = None) -> Tensor:
    chosen = _axes(call, axes)
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


@register("Unsqueeze", listed=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Listed = None) -> Tensor:
    chosen = _axes(call, axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@register("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.attrs["axis"])


@register("Split", listed=(1,))
def split(call: Call, x: Tensor, sizes: Listed = None) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    wanted = sizes if sizes is not None else list(call.get("split") or [])
    if not wanted:
        return torch.split(x, -(-x.shape[axis] // call.outputs), axis)
    return torch.split(x, wanted, axis)


@register("Slice", listed=(1, 2, 3, 4))
def cut(call: Call, x: Tensor, *bounds: Listed) -> Tensor:
    """Bounds are attributes before opset 10; a negative step turns the axis around."""
    if call.opset < 10:
        starts, stops = list(call.attrs["starts"]), list(call.attrs["ends"])
        axes, steps = list(call.get("axes") or range(len(starts))), [1] * len(starts)
    else:
        lists = [item or [] for item in bounds] + [[], [], [], []]
        starts, stops = lists[0], lists[1]
        axes, steps = lists[2] or list(range(len(starts))), lists[3] or [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step > 0:
            edge = x.shape[axis]
            first, last, _ = slice(start, stop, step).indices(edge)
            x = x.narrow(axis, first, max(last - first, 0))
            if step > 1:
                x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
        else:
            end = None if stop < -x.shape[axis] else stop
            chosen = list(range(*slice(start, end, step).indices(x.shape[axis])))
            x = x.index_select(axis, torch.tensor(chosen, device=x.device))
    return x


@register("Gather")
def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    index = index.to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@register("GatherElements")
def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    index = torch.where(index < 0, index + x.shape[axis], index)
    return torch.gather(x, axis, index.to(x.device))


@register("Expand", listed=(1,))
def expand(_: Call, x: Tensor, target: list[int]) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(target)))


@register("Tile", listed=(1,))
def tile(_: Call, x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


@register("ConstantOfShape", listed=(0,))
def constant_of_shape(call: Call, target: list[int]) -> Tensor:
    """The value, a tensor of one element, was read by the bridge."""
    value = call.get("value")
    if value is None:
        return torch.zeros(target)
    full: Tensor = value.reshape(-1)[:1].expand(target) if target else value.reshape(())
    return full


@register("Range")
def arange(_: Call, start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    """Of constants: it is computed with the shapes, once."""
    return torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


@register("Pad", listed=(1, 2, 3))
def pad(call: Call, x: Tensor, amounts: Listed = None, value: Listed = None, axes: Listed = None) -> Tensor:
    """Amounts are an attribute before opset 11, and may be negative, which cuts."""
    given = amounts if amounts is not None else list(call.attrs["pads"])
    fill = float(value[0]) if value else float(call.get("value", 0.0))
    chosen = axes if axes is not None else list(range(x.ndim))
    count = len(chosen)
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(chosen):
        begins[axis], ends[axis] = given[i], given[i + count]
    pairs = [amount for axis in reversed(range(x.ndim)) for amount in (begins[axis], ends[axis])]
    mode = call.get("mode", "constant")
    if mode == "constant":
        return functional.pad(x, pairs, value=fill)
    while pairs and pairs[-1] == 0 and pairs[-2] == 0:
        pairs = pairs[:-2]
    return functional.pad(
        x, pairs, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    )


@register("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    if call.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * b, w * b)


@register("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    cut_up = x.reshape(n, c, h // b, b, w // b, b)
    return cut_up.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reduction over `axes`, which became an input of ReduceSum in opset 13 and of the others in 18."""

    def operator(call: Call, x: Tensor, axes: Listed = None) -> Tensor:
        chosen, keep = _axes(call, axes), bool(call.get("keepdims", 1))
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        return function(x, tuple(chosen), keep)

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Any] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep),
    "ReduceLogSumExp": torch.logsumexp,
}
OPS.update({name: Operator(_reduction(function), listed=(1,)) for name, function in _REDUCTIONS.items()})


@register("ArgMax")
def argmax(call: Call, x: Tensor) -> Tensor:
    return torch.argmax(x, call.get("axis", 0), bool(call.get("keepdims", 1)))


@register("Trilu", listed=(1,))
def trilu(call: Call, x: Tensor, k: Listed = None) -> Tensor:
    diagonal = int(k[0]) if k else 0
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)
