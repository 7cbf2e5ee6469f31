"""Convolutions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from onnxq.training.ops.registry import Call, Listed, Optional, Tensor, register

__all__: list[str] = []

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def _window(call: Call, kernel: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """(strides, dilations, pads): pads as ONNX has them, all begins before all ends."""
    axes = len(kernel)
    strides = list(call.get("strides") or [1] * axes)
    dilations = list(call.get("dilations") or [1] * axes)
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return strides, dilations, list(call.get("pads") or [0] * (2 * axes))
    if auto == "VALID":
        return strides, dilations, [0] * (2 * axes)
    begins, ends = [], []
    for edge, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        needed = max((-(-edge // stride) - 1) * stride + (k - 1) * dilation + 1 - edge, 0)
        small, large = needed // 2, needed - needed // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return strides, dilations, begins + ends


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's pads in the order of torch.nn.functional.pad: last axis first, begin and end in turn."""
    axes = len(pads) // 2
    return [pads[i + side * axes] for i in reversed(range(axes)) for side in (0, 1)]


def _symmetric(pads: Sequence[int]) -> bool:
    axes = len(pads) // 2
    return list(pads[:axes]) == list(pads[axes:])


@register("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    kernel, groups = list(weight.shape[2:]), call.get("group", 1)
    strides, dilations, pads = _window(call, kernel, x.shape[2:])
    inner = pads[: len(kernel)]
    if not _symmetric(pads):
        x, inner = functional.pad(x, _torch_pads(pads)), [0] * len(kernel)
    function = _CONV[len(kernel) - 1]
    if groups > 1 and weight.shape[1] == 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # The bfloat16 kernels of depthwise convolutions are slower than those of float32 on CPUs.
        with torch.autocast("cpu", enabled=False):
            return function(x.float(), weight, bias, strides, inner, dilations, groups)
    return function(x, weight, bias, strides, inner, dilations, groups)


@register("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    """Uneven pads are cut off the result of none."""
    axes = weight.ndim - 2
    strides = list(call.get("strides") or [1] * axes)
    dilations = list(call.get("dilations") or [1] * axes)
    extra = list(call.get("output_padding") or [0] * axes)
    kernel = list(weight.shape[2:])
    pads = list(call.get("pads") or [0] * (2 * axes))
    auto, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted or auto.startswith("SAME"):
        sizes = list(wanted) if wanted else [e * s for e, s in zip(x.shape[2:], strides, strict=True)]
        begins, ends = [], []
        for i, size in enumerate(sizes):
            full = strides[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
            excess = full - size
            low = excess // 2 if auto == "SAME_UPPER" or not auto.startswith("SAME") else excess - excess // 2
            begins.append(low)
            ends.append(excess - low)
        pads = begins + ends
    function = _CONV_TRANSPOSE[axes - 1]
    groups = call.get("group", 1)
    full_size = function(x, weight, bias, strides, [0] * axes, extra, groups, dilations)
    for i in range(axes):
        end = full_size.shape[2 + i] - pads[axes + i]
        full_size = full_size.narrow(2 + i, pads[i], end - pads[i])
    return full_size


def _ceil_pads(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """As `_window`, with the ends widened where ceil_mode adds a window."""
    strides, dilations, pads = _window(call, kernel, x.shape[2:])
    if call.get("ceil_mode", 0):
        axes = len(kernel)
        for i in range(axes):
            reach = (kernel[i] - 1) * dilations[i] + 1
            span = x.shape[2 + i] + pads[i] + pads[axes + i] - reach
            windows = -(-span // strides[i])
            # A window that would begin in the end padding is not counted.
            if windows * strides[i] >= x.shape[2 + i] + pads[i]:
                windows -= 1
            pads[axes + i] += max(windows * strides[i] - span, 0)
    return strides, dilations, pads


@register("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.attrs["kernel_shape"]
    strides, dilations, pads = _ceil_pads(call, x, kernel)
    if any(pads):
        x = functional.pad(x, _torch_pads(pads), value=float("-inf"))
    return _MAX_POOL[len(kernel) - 1](x, kernel, strides, 0, dilations)


@register("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Sums over windows through a convolution with ones; padding counts where count_include_pad says so."""
    kernel = call.attrs["kernel_shape"]
    _, _, own = _window(call, kernel, x.shape[2:])
    strides, dilations, pads = _ceil_pads(call, x, kernel)
    axes, channels = len(kernel), x.shape[1]
    ones = torch.ones([channels, 1, *kernel], dtype=x.dtype, device=x.device)
    total = _CONV[axes - 1](functional.pad(x, _torch_pads(pads)), ones, None, strides, 0, dilations, channels)
    inside = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        inside = functional.pad(inside, _torch_pads(own), value=1.0)
        rest = [end - mine for end, mine in zip(pads, own, strict=True)]
    else:
        rest = list(pads)
    counted = functional.pad(inside, _torch_pads(rest))
    return total / _CONV[axes - 1](counted, ones[:1], None, strides, 0, dilations)


@register("GlobalAveragePool")
def global_average_pool(_: Call, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@register("GlobalMaxPool")
def global_max_pool(_: Call, x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@register("Resize", "Upsample", listed=(1, 2, 3))
def resize(call: Call, x: Tensor, *inputs: Listed) -> Tensor:
    """Nearest (floor, asymmetric), linear and cubic of the two last axes, as torch's exporter writes them."""
    given = [*inputs, None, None, None]
    scales, sizes = (given[0] or call.get("scales"), None) if call.opset < 11 else (given[1], given[2])
    if sizes:
        shape = sizes[-(x.ndim - 2) :]
    else:
        factors = list(scales or [])[-(x.ndim - 2) :]
        shape = [int(edge * factor) for edge, factor in zip(x.shape[2:], factors, strict=True)]
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        exact = where != "asymmetric" or call.get("nearest_mode", "round_prefer_floor") != "floor"
        return functional.interpolate(x, shape, mode="nearest-exact" if exact else "nearest")
    kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2] if mode == "linear" else "bicubic"
    return functional.interpolate(x, shape, mode=kind, align_corners=where == "align_corners")
