"""Dynamic quantization of one layer: weights ahead of time, activations at run time.

x -> DynamicQuantizeLinear -> (codes, s_x, z_x); y = s_x * s_w * IntegerOp(codes, w) + bias, where the
integer operator is ConvInteger or MatMulInteger; s_w per tensor or per output channel. ONNX Runtime
fuses the MatMul form into one kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.formats import Form
from passes.formats.encoded import unsigned
from passes.formats.weights import EncodedWeight
from passes.graph.editing import (
    add_constant,
    add_shared,
    consumers,
    is_constant,
    unique_name,
    values,
    values_type,
)
from passes.graph.layers import Layer, weight_index
from passes.placement.biases import fold_gemm_factors
from passes.placement.sharing import SharedWeights
from passes.policy import LayerPolicy

__all__ = ["quantize_dynamic"]


def _refusal(layer: Layer, node: gs.Node, choice: LayerPolicy) -> str | None:
    """Why the layer cannot run on dynamic integers; None when it can."""
    if layer.op == "ConvTranspose":
        return "ONNX has no integer ConvTranspose"
    if choice.weights.bits > 8 or not choice.weights.is_integer or choice.weights.granularity == "block":
        return f"dynamic activations need weights of up to 8 bits per tensor or channel, not {choice.weights}"
    if not choice.weights.symmetric or choice.activations.bits != 8:
        return "dynamic activations are 8 bits, with symmetric weights"
    if layer.op == "Gemm" and node.attrs.get("transA", 0):
        return "Gemm with transA has no integer form"
    if layer.op == "MatMul" and (weight_index(node) != 1 or len(layer.weight_shape) != 2):
        return "only a matrix on the right of MatMul has an integer form"
    index = weight_index(node)
    if index is None or values_type(node.inputs[index]) != np.float32:
        return "dynamic quantization takes float32 activations"
    return None


def _dynamic_input(graph: gs.Graph, tensor: gs.Tensor) -> list[gs.Tensor]:
    """Codes, scale and zero point of the tensor at run time; made once for all its readers."""
    for reader in consumers(tensor):
        if reader.op == "DynamicQuantizeLinear":
            return list(reader.outputs)
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("quantized", np.uint8, tensor.shape),
        ("scale", np.float32, []),
        ("zero_point", np.uint8, []),
    )
    outputs = [
        gs.Variable(unique_name(graph, f"{tensor.name}_{k}"), dtype, shape) for k, dtype, shape in kinds
    ]
    name = unique_name(graph, f"{tensor.name}_DynamicQuantizeLinear")
    graph.nodes.append(gs.Node("DynamicQuantizeLinear", name, {}, [tensor], outputs))
    return outputs


def _spread(array: npt.NDArray[Any], layer: Layer) -> npt.NDArray[Any]:
    """A per-channel vector shaped to broadcast over the layer's output."""
    if layer.op != "Conv" or array.ndim == 0:
        return array
    return array.reshape([1, -1] + [1] * (len(layer.weight_shape) - 2))


def quantize_dynamic(
    graph: gs.Graph,
    layer: Layer,
    node: gs.Node,
    choice: LayerPolicy,
    form: Form | None,
    context: Context,
    shared: SharedWeights,
    encoded: EncodedWeight | None = None,
) -> bool:
    """Rewrite the layer in place; False with a note when it has no integer form (weights only then).

    form: of its weight. encoded: the weight, where it was rounded before.
    """
    reason = _refusal(layer, node, choice)
    if reason is not None:
        context.note(
            "refused", layer.name, f"{reason}; its weights are quantized, its activations stay float"
        )
        return False
    index = weight_index(node)
    assert index is not None  # it is a layer
    assert form is not None  # whose weight does not stay float
    if choice.weights.bits in (2, 4):
        reason = "is stored in 8 bits a weight: integer operators take no narrower type"
        context.note("info", layer.name, reason)
    fold_gemm_factors(graph, node, index)
    if encoded is None:
        tensor = node.inputs[index]
        encoded = shared.encoded(layer, tensor, values(tensor), choice.weights)
    if node.op == "Conv":
        encoded = unsigned(encoded)  # ONNX Runtime before 1.24 has no ConvInteger for int8
    stored = shared.place(layer, graph, encoded, choice.weights, form, "dynamic", lambda _, held: held)
    codes = stored.codes.T if node.op == "Gemm" and node.attrs.get("transB", 0) else stored.codes
    hint, data = node.inputs[index].name, node.inputs[0]
    zero_code = np.asarray(128 if codes.dtype == np.uint8 else 0, codes.dtype)
    weight = add_shared(graph, f"{hint}_quantized", codes)
    zero = add_shared(graph, f"{hint}_zero_point", zero_code)
    scale = add_shared(graph, f"{hint}_scale", _spread(encoded.scale, layer))
    coded, data_scale, data_zero = _dynamic_input(graph, data)
    output = node.outputs[0]

    def emit(
        op: str, suffix: str, inputs: list[gs.Tensor], target: gs.Tensor | None, dtype: Any, **attrs: Any
    ) -> Any:
        result = target or gs.Variable(unique_name(graph, f"{node.name}_{suffix}"), dtype)
        graph.nodes.append(gs.Node(op, unique_name(graph, f"{node.name}_{op}"), attrs, inputs, [result]))
        return result

    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    attrs = dict(node.attrs) if node.op == "Conv" else {}
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    is_conv = node.op == "Conv"
    node.inputs.clear()
    node.outputs.clear()
    integer = emit(
        "ConvInteger" if is_conv else "MatMulInteger",
        "integer",
        [coded, weight, data_zero, zero],
        None,
        np.int32,
        **attrs,
    )
    real = emit("Cast", "real", [integer], None, np.float32, to=1)
    steps = emit("Mul", "scale", [data_scale, scale], None, np.float32)
    scaled = emit("Mul", "scaled", [real, steps], None if bias is not None else output, np.float32)
    if bias is not None:
        if is_constant(bias):
            bias = add_shared(graph, f"{bias.name}_added", _spread(values(bias), layer))
        elif is_conv:
            wide = [1, -1] + [1] * (len(layer.weight_shape) - 2)
            shape = add_constant(graph, f"{node.name}_bias_shape", np.asarray(wide, np.int64))
            bias = emit("Reshape", "bias", [bias, shape], None, np.float32)
        elif beta != 1.0:
            factor = add_constant(graph, f"{node.name}_beta", np.asarray(beta, np.float32))
            bias = emit("Mul", "bias", [bias, factor], None, np.float32)
        emit("Add", "biased", [scaled, bias], output, np.float32)
    return True
