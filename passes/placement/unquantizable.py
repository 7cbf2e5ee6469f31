"""Why a model has no layer, or fewer layers than it seems: what `quantize` says instead of doing nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from passes.core.base import Note
from passes.core.errors import UnsupportedModelError
from passes.formats import stream_of
from passes.graph.boundary import import_graph
from passes.graph.editing import is_constant, producer, subgraphs, values
from passes.graph.function_layers import functions_with_layers
from passes.graph.jsontext import parse_json
from passes.graph.layers import LAYER_OPS, weight_index
from passes.graph.model import Model, every_graph
from passes.policy import POLICY_KEY, Policy

__all__ = ["counted", "no_layer", "nothing_left", "odd_layers", "quantized_already", "refuse_unchanged"]

# Operators that compute with quantized weights, of ONNX and of ONNX Runtime.
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
        "QMoE",
    }
)
_MOVES = ("Reshape", "Transpose", "Slice", "Cast", "Identity")


def counted(names: Sequence[str]) -> str:
    """`3 layers, first 'x'`, or `layer 'x'`."""
    return f"layer '{names[0]}'" if len(names) == 1 else f"{len(names)} layers, first '{names[0]}',"


def _dequantized_layers(graph: gs.Graph) -> list[str]:
    """Names of the weighted nodes whose weights are codes behind DequantizeLinear or a bit stream."""
    names = []
    for current, _ in subgraphs(graph):
        for node in current.nodes:
            if node.op in LAYER_OPS and weight_index(node) is None:
                names += [node.name for tensor in node.inputs[:2] if _dequantized_constant(tensor)][:1]
    return names


def _dequantized_constant(tensor: gs.Tensor) -> bool:
    maker = producer(tensor)
    while maker is not None and maker.op in _MOVES:
        maker = producer(maker.inputs[0])
    if maker is None or not is_constant(maker.inputs[0]):
        return False
    return maker.op == "DequantizeLinear" or stream_of(maker.domain, maker.op) is not None


def odd_layers(graph: gs.Graph) -> dict[str, list[str]]:
    """Nodes that would be layers if their weights were not empty or of another type: reason -> names."""
    found: dict[str, list[str]] = {}
    for current, _ in subgraphs(graph):
        for node in current.nodes:
            if node.op not in LAYER_OPS or node.domain not in (None, "", "ai.onnx"):
                continue
            if weight_index(node) is not None:
                continue
            held = [_weight_fault(tensor) for tensor in node.inputs[:2] if _is_weight(tensor)]
            reason = next(filter(None, held), "")
            if reason and len(held) == 1:
                found.setdefault(reason, []).append(node.name)
    return found


def _is_weight(tensor: gs.Tensor) -> bool:
    return is_constant(tensor) and len(_shape(tensor)) >= 2


def _shape(tensor: gs.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, gs.Constant) else values(tensor).shape)


def _weight_fault(tensor: gs.Tensor) -> str:
    shape = _shape(tensor)
    if 0 in shape:
        return f"has not a single weight (shape {list(shape)})"
    kind = tensor.dtype if isinstance(tensor, gs.Constant) else values(tensor).dtype
    name = onnx.TensorProto.DataType.Name(kind).lower() if isinstance(kind, int) else np.dtype(kind).name
    if name.startswith(("bfloat", "float")) and name not in ("float16", "float32", "float64"):
        return f"has weights in {name}, which onnxq does not quantize; export them in float32 or float16"
    return ""


def _quantized_ops(model: Model) -> Counter[str]:
    ops = Counter(node.op_type for graph in every_graph(model.proto.graph) for node in graph.node)
    return Counter({op: count for op, count in ops.items() if op in _QUANTIZED_OPS})


def no_layer(model: Model, graph: gs.Graph, done: Iterable[str]) -> str:
    """The sentence for a model without a layer that could be quantized."""
    done, operators = sorted(done), _quantized_ops(model)
    if done or operators:
        ops = ", ".join(f"{count} {op}" for op, count in operators.most_common(4))
        what = f"its weights are codes in {counted(done)}" if done else f"it computes with {ops}"
        return (
            f"{model.name}: is already quantized: {what.rstrip(',')}; "
            "give the float model that it was made from"
        )
    for reason, names in odd_layers(graph).items():
        return f"{model.name}: has no quantizable layer: {counted(names)} {reason}"
    held = functions_with_layers(model.proto)
    if held:
        return (
            f"{model.name}: has layers in model-local functions alone ({', '.join(held[:3])}), which onnx "
            "cannot inline; export it without functions"
        )
    return (
        f"{model.name}: has no quantizable layer (Conv, ConvTranspose, Gemm or MatMul with a "
        "constant weight); run simplify first, if its weights are computed"
    )


def quantized_already(model: Model, graph: gs.Graph) -> set[str]:
    """Names of weighted nodes whose weights are quantized: by this pass (its metadata) or by another."""
    held = model.metadata.get(POLICY_KEY)
    names = (
        set(Policy.from_json(parse_json(held, f"{model.name}: the policy in its metadata")).quantized)
        if held
        else set()
    )
    return names.union(_dequantized_layers(graph))


def refuse_unchanged(before: Model, after: Model) -> None:
    """Raise UnsupportedModelError when `before` was quantized already and `after` is so no further."""
    held = before.metadata.get(POLICY_KEY)
    if held is not None and held == after.metadata.get(POLICY_KEY):
        graph = import_graph(before)
        raise UnsupportedModelError(no_layer(before, graph, quantized_already(before, graph)))


def nothing_left(model: Model, wanted: Policy, notes: Sequence[Note]) -> str:
    """Why no layer that the policy quantizes can be quantized, from the notes on them."""
    reasons: dict[str, list[str]] = {}
    for note in notes:
        if note.kind == "refused" and note.node in wanted.layers:
            reasons.setdefault(note.reason.removesuffix("; stays float"), []).append(note.node)
    told = "; ".join(f"{counted(names).rstrip(',')}: {reason}" for reason, names in reasons.items())
    count = len(wanted.quantized)
    return f"{model.name}: 0 of {count} layer(s) can be quantized ({told}); export the model in float32"
