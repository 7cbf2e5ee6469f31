"""Q/DQ pairs on activations: their ranges and their nodes, where passes/placement.py wants them.

Asymmetric: real range [low, high] widened to hold 0. Symmetric: max(|low|, |high|), stored unsigned, with
zero point 0 where the tensor is never negative and the middle elsewhere, which is the same grid as signed
codes with zero point 0: ONNX Runtime fuses only where the types of a layer's input and output agree.
Formats below 8 bits are simulated: Clip to their range, then an 8-bit Q/DQ on their grid.
A tensor that has a Q/DQ pair already keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.graph import add_constant, consumers, is_constant, producer, replace_uses, unique_name, values
from passes.inference import Types
from passes.placement import ActivationPlan
from passes.policy import Scheme
from runtime_ops import IntegerFormat, affine_parameters

__all__ = ["Range", "activation_range", "activation_ranges", "insert_pairs"]


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
    for coder in consumers(tensor):
        if coder.op == "QuantizeLinear":
            for reader in consumers(coder.outputs[0]):
                if reader.op == "DequantizeLinear":
                    return reader
    return None


def _held_range(node: gs.Node) -> Range | None:
    """What a DequantizeLinear with constant scalars says."""
    if len(node.inputs) < 3 or not all(is_constant(tensor) for tensor in node.inputs[1:3]):
        return None
    scale, zero = (values(tensor) for tensor in node.inputs[1:3])
    if scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    fmt = IntegerFormat(zero.dtype.itemsize * 8, zero.dtype.kind == "i")
    return Range(np.asarray(scale, np.float32).reshape(()), zero.reshape(()), fmt)


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
        elif held.outputs[0] is not tensor:
            replace_uses(graph, tensor, held.outputs[0], only=plan.readers.get(name, []))


def _insert(graph: gs.Graph, tensor: gs.Tensor, source: Range, dtype: Any, readers: list[gs.Node] | None) -> None:
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
