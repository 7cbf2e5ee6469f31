"""Biases of integer layers: int32 with scale_bias = scale_x * scale_w, as ONNX Runtime's kernels add them.

1. The bias is constant and of a Conv, or of a Gemm, where a scalar or a row is spread to [N].
2. Codes stay below 2^30: a channel whose bias would leave that gets a wider scale_w instead (a dead
   channel with weights of 1e-10 and a bias of 5 lost its bias otherwise; microsoft/onnxruntime PR #22020).
3. alpha and beta of a Gemm are multiplied into its weight and its constant bias first: integer kernels
   know neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.graph.editing import add_shared, is_constant, unique_name, values

__all__ = ["constant_bias", "fold_gemm_factors", "room_for_bias", "set_bias", "write_bias"]

Float64 = npt.NDArray[np.float64]


def fold_gemm_factors(graph: gs.Graph, node: gs.Node, index: int) -> None:
    """Multiply alpha into the constant weight of a Gemm and beta into its bias, where that is constant."""
    if node.op != "Gemm":
        return
    alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
    if alpha != 1.0:
        weight = values(node.inputs[index])
        scaled = (weight * np.float64(alpha)).astype(weight.dtype)
        node.inputs[index] = add_shared(graph, f"{node.inputs[index].name}_alpha", scaled)
        node.attrs["alpha"] = 1.0
    if beta == 1.0:
        return
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        node.attrs["beta"] = 1.0
    elif is_constant(node.inputs[2]):
        bias = values(node.inputs[2])
        scaled = (bias * np.float64(beta)).astype(bias.dtype)
        node.inputs[2] = add_shared(graph, f"{node.inputs[2].name}_beta", scaled)
        node.attrs["beta"] = 1.0


def constant_bias(node: gs.Node, channels: int) -> Float64 | None:
    """The bias as float64 [channels]; None where rule 1 does not hold."""
    if node.op not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return None
    if not is_constant(node.inputs[2]) or (node.op == "Gemm" and node.attrs.get("beta", 1.0) != 1.0):
        return None
    bias = np.asarray(values(node.inputs[2]), np.float64)
    if (
        bias.size not in (1, channels)
        or (bias.ndim == 2 and bias.shape[0] != 1)
        or not np.isfinite(bias).all()
    ):
        return None
    return np.array(np.broadcast_to(bias.reshape(-1), (channels,)))


def room_for_bias(node: gs.Node, channels: int) -> Float64 | None:
    """As `constant_bias`, and zeros where a bias can be added; None where none can be written."""
    if node.op in ("Conv", "Gemm") and (len(node.inputs) < 3 or node.inputs[2].is_empty()):
        return np.zeros(channels)
    return constant_bias(node, channels)


def set_bias(graph: gs.Graph, node: gs.Node, bias: Float64, dtype: npt.DTypeLike) -> None:
    """Give a Conv or Gemm (beta = 1) a float bias of its own."""
    named = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    hint = node.inputs[2].name if named else f"{node.name}_bias"
    held = add_shared(graph, f"{hint}_corrected", bias.astype(dtype))
    if len(node.inputs) > 2:
        node.inputs[2] = held
    else:
        node.inputs.append(held)


def write_bias(
    graph: gs.Graph,
    node: gs.Node,
    bias: Float64,
    input_scale: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
) -> None:
    """Replace the bias by int32 codes behind DequantizeLinear; scale: of the weight, [] or [C]."""
    steps = (input_scale * scale).astype(np.float32)
    # A product of two small scales may leave float32; a bias that it cannot hold has raised it.
    steps = np.maximum(steps, np.finfo(np.float32).tiny)
    codes = np.clip(np.rint(bias / steps), -(2**31), 2**31 - 1).astype(np.int32)
    name, dtype = node.inputs[2].name, values(node.inputs[2]).dtype
    inputs = [
        add_shared(graph, f"{name}_quantized", codes),
        add_shared(graph, f"{name}_scale", steps.astype(dtype)),
        add_shared(graph, f"{name}_zero_point", np.zeros(steps.shape, np.int32)),
    ]
    output = gs.Variable(unique_name(graph, f"{name}_dequantized"), dtype, list(bias.shape))
    attrs: dict[str, Any] = {"axis": 0} if steps.ndim else {}
    label = unique_name(graph, f"{name}_DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", label, attrs, inputs, [output]))
    node.inputs[2] = output
