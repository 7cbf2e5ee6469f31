"""Q/DQ pairs on activations: their ranges and their nodes, where passes/placement/places.py wants them.

Asymmetric: real range [low, high] widened to hold 0. Symmetric: max(|low|, |high|), stored unsigned, with
zero point 0 where the tensor is never negative and the middle elsewhere, which is the same grid as signed
codes with zero point 0: ONNX Runtime fuses only where the types of a layer's input and output agree.
Formats below 8 bits are simulated: Clip to their range, then an 8-bit Q/DQ on their grid.
A tensor that has a Q/DQ pair already keeps it.

Layers with float weights need a guard. Between DequantizeLinear and QuantizeLinear, ONNX Runtime (seen in
1.31) quantizes the float weights of Conv and Gemm by itself, to int8 per tensor: an excluded layer would be
the worst one of the network. It does so only where the input's scale is a scalar. Such layers therefore read
a DequantizeLinear of their own whose scale is the same number once per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.graph.editing import (
    add_constant,
    consumers,
    is_constant,
    producer,
    replace_uses,
    unique_name,
    values,
)
from passes.graph.inference import Types
from passes.graph.layers import weight_index
from passes.placement.places import ActivationPlan
from passes.policy import Scheme
from runtime_ops import IntegerFormat, affine_parameters

__all__ = ["Range", "activation_range", "activation_ranges", "guard_float_layers", "insert_pairs"]

_GUARDED_OPS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Range:
    """Scale (float32 scalar) and zero point of one activation tensor, and the format of its codes."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    format: IntegerFormat


def activation_range(low: float, high: float, scheme: Scheme) -> Range:
    """Quantization parameters for the calibrated real range [low, high]; see the module's docstring."""
    if not scheme.symmetric:
        fmt = IntegerFormat(scheme.bits, scheme.signed)
        scale, zero_point = affine_parameters(low, high, fmt)
        return Range(np.asarray(scale, np.float32), zero_point, fmt)
    fmt = IntegerFormat(scheme.bits, signed=False)
    middle = 0 if low >= 0 else 1 << (scheme.bits - 1)
    step = np.float32(max(abs(low), abs(high)) / (fmt.highest - middle))
    scale = np.asarray(step if step >= np.finfo(np.float32).tiny else 1, np.float32)
    return Range(scale, np.asarray(middle, fmt.container), fmt)


def activation_ranges(plan: ActivationPlan, real: Mapping[str, tuple[float, float]]) -> dict[str, Range]:
    """Parameters of every tensor of the plan. real: calibrated ranges of the tensors that are a source."""
    ranges: dict[str, Range] = {}
    for name, root in plan.source.items():
        held = _held_pair(plan.tensors[root])
        low, high = real[root]
        known = _held_range(held) if held is not None else None
        ranges[name] = known or activation_range(low, high, plan.schemes[name])
    return ranges


def _held_pair(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear of the pair that the tensor has already: behind it, or the one that made it."""
    maker = producer(tensor)
    if maker is not None and maker.op == "DequantizeLinear":
        return maker
    coders = [node for node in consumers(tensor) if node.op == "QuantizeLinear"]
    readers = [
        node for coder in coders for node in consumers(coder.outputs[0]) if node.op == "DequantizeLinear"
    ]
    # A guard's scales are one per channel; the pair itself is preferred.
    return min(readers, key=lambda node: "axis" in node.attrs, default=None)


def _held_range(node: gs.Node) -> Range | None:
    """What a DequantizeLinear with one constant scale and zero point says."""
    if len(node.inputs) < 3 or not all(is_constant(tensor) for tensor in node.inputs[1:3]):
        return None
    scale, zero = (values(tensor) for tensor in node.inputs[1:3])
    # A guard holds the same numbers once per channel.
    if np.unique(scale).size != 1 or np.unique(zero).size != 1 or zero.dtype.kind not in "iu":
        return None
    fmt = IntegerFormat(zero.dtype.itemsize * 8, zero.dtype.kind == "i")
    return Range(np.asarray(scale.flat[0], np.float32), np.asarray(zero.flat[0]), fmt)


def _dtype(types: Types, tensor: gs.Tensor) -> Any:
    """The tensor's float type, declared or inferred; float32 where nothing is known."""
    if tensor.dtype is not None:
        return tensor.dtype
    kind = types.of(tensor)
    return np.float32 if kind is None else onnx.helper.tensor_dtype_to_np_dtype(kind.dtype)


def insert_pairs(graph: gs.Graph, plan: ActivationPlan, ranges: Mapping[str, Range], types: Types) -> None:
    """Put a pair on every tensor of the plan, for the readers that the plan names."""
    for name, tensor in plan.tensors.items():
        if is_constant(tensor):
            continue
        held = _held_pair(tensor)
        if held is None:
            readers = None if name in plan.for_all else plan.readers.get(name, [])
            _insert(graph, tensor, ranges[name], _dtype(types, tensor), readers)
            continue
        if "axis" in held.attrs and values(held.inputs[1]).size > 1:
            held = _without_guard(graph, held, ranges[name])
        if held.outputs[0] is not tensor:
            replace_uses(graph, tensor, held.outputs[0], only=plan.readers.get(name, []))


def _without_guard(graph: gs.Graph, node: gs.Node, source: Range) -> gs.Node:
    """A DequantizeLinear with scalars, for a layer that is quantized now."""
    real = node.outputs[0]
    scalars = [
        add_constant(graph, node.inputs[1].name, source.scale.astype(values(node.inputs[1]).dtype)),
        add_constant(graph, node.inputs[2].name, source.zero_point),
    ]
    output = gs.Variable(unique_name(graph, real.name), real.dtype, real.shape)
    plain = gs.Node(
        "DequantizeLinear", unique_name(graph, node.name), {}, [node.inputs[0], *scalars], [output]
    )
    graph.nodes.append(plain)
    return plain


def _insert(
    graph: gs.Graph, tensor: gs.Tensor, source: Range, dtype: Any, readers: list[gs.Node] | None
) -> None:
    """One pair; readers None: everyone reads what it gives, the graph's outputs too."""
    name, shape = tensor.name, tensor.shape
    scale = add_constant(graph, f"{name}_scale", source.scale.astype(dtype))
    zero = add_constant(graph, f"{name}_zero_point", source.zero_point)
    real = gs.Variable(unique_name(graph, f"{name}_dequantized"), dtype, shape)
    replace_uses(graph, tensor, real, only=readers)
    if any(output is real for output in graph.outputs):
        # The graph's output keeps its name: the float tensor before Q takes another one.
        tensor.name, real.name = unique_name(graph, f"{name}_float"), name
    origin = _simulate_narrow(graph, tensor, source, name, dtype)
    coded = gs.Variable(unique_name(graph, f"{name}_quantized"), source.format.container, shape)
    q_name, dq_name = (unique_name(graph, f"{name}_{op}") for op in ("QuantizeLinear", "DequantizeLinear"))
    graph.nodes.append(gs.Node("QuantizeLinear", q_name, {}, [origin, scale, zero], [coded]))
    graph.nodes.append(gs.Node("DequantizeLinear", dq_name, {}, [coded, scale, zero], [real]))


def _simulate_narrow(graph: gs.Graph, tensor: gs.Tensor, source: Range, hint: str, dtype: Any) -> gs.Tensor:
    """Clip to the range of a format below 8 bits, whose container would hold more."""
    fmt = source.format
    if fmt.bits in (8, 16):
        return tensor
    bounds = [(code - int(source.zero_point)) * source.scale for code in (fmt.lowest, fmt.highest)]
    limits = [
        add_constant(graph, f"{hint}_{side}", np.asarray(bound, dtype))
        for side, bound in zip(("low", "high"), bounds, strict=True)
    ]
    clipped = gs.Variable(unique_name(graph, f"{hint}_clipped"), dtype, tensor.shape)
    graph.nodes.append(gs.Node("Clip", unique_name(graph, f"{hint}_Clip"), {}, [tensor, *limits], [clipped]))
    return clipped


def _leads_to_quantize(node: gs.Node) -> bool:
    """Whether a QuantizeLinear reads the result, across Relu and Clip, and nobody else does."""
    while True:
        readers = consumers(node.outputs[0])
        if len(readers) != 1 or readers[0].op not in ("Relu", "Clip", "QuantizeLinear"):
            return False
        if readers[0].op == "QuantizeLinear":
            return True
        node = readers[0]


def _float_weight(node: gs.Node) -> gs.Tensor | None:
    """The float weight of a layer, where it has one; that of a layer in float16 is behind a Cast."""
    if weight_index(node) is not None:
        return node.inputs[1]
    maker = producer(node.inputs[1]) if len(node.inputs) > 1 else None
    cast = maker is not None and maker.op == "Cast" and is_constant(maker.inputs[0])
    return maker.inputs[0] if maker is not None and cast else None


def guard_float_layers(graph: gs.Graph) -> list[str]:
    """Keep float weights between pairs float (see the module's docstring).

    Returns the layers that cannot be guarded: those with a single input channel.
    """
    unguarded: list[str] = []
    for node in list(graph.nodes):
        weight = _float_weight(node)
        if node.op not in _GUARDED_OPS or weight is None or not _leads_to_quantize(node):
            continue
        reader = producer(node.inputs[0])
        held = _held_range(reader) if reader is not None and reader.op == "DequantizeLinear" else None
        if held is None or reader is None:
            continue
        shape = values(weight).shape
        turned = node.op == "ConvTranspose" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
        channels = shape[0] if turned else shape[1] * int(node.attrs.get("group", 1))
        if channels == 1:
            unguarded.append(node.name)
            continue
        tensor, hint = node.inputs[0], f"{node.name}_input"
        scale = np.full(channels, values(reader.inputs[1]), values(reader.inputs[1]).dtype)
        vectors = [
            add_constant(graph, f"{hint}_scale", scale),
            add_constant(graph, f"{hint}_zero_point", np.full(channels, held.zero_point)),
        ]
        real = gs.Variable(unique_name(graph, f"{hint}_dequantized"), tensor.dtype, tensor.shape)
        axis = {"axis": 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else 1}
        name = unique_name(graph, f"{hint}_DequantizeLinear")
        graph.nodes.append(gs.Node("DequantizeLinear", name, axis, [reader.inputs[0], *vectors], [real]))
        node.inputs[0] = real
    return unguarded
