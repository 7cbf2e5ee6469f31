"""The nodes of a model as steps that torch runs, and which of its initializers are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from onnxq.training.ops import convolution, elementwise, linear, movement, normalization
from onnxq.training.ops.registry import OPS, Call, Operator
from passes.core.errors import UnsupportedModelError
from passes.graph.external_data import tensor_array
from passes.graph.model import Model

__all__ = ["Step", "as_tensor", "read_roles", "read_steps"]

# Importing them has filled the table of operators.
_SUBJECTS = (convolution, elementwise, linear, movement, normalization)
# Operators of which these inputs are weights even where they are short; None: any input.
_WEIGHTED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
_MAYBE_WEIGHTED = frozenset(
    {"Add", "Sub", "Mul", "Div", "Concat", "Gather", "Expand", "Where", "Transpose", "Reshape", "Unsqueeze",
     "Squeeze", "Slice", "Tile", "Cast", "Sigmoid", "Exp", "Softplus"}
)  # fmt: skip
_MASK = -50.0


@dataclass(frozen=True)
class Step:
    """One node. inputs, outputs: names, empty where there is none."""

    operator: Operator
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    node: str
    op: str


def as_tensor(proto: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(tensor_array(proto).copy())


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return as_tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def read_steps(model: Model) -> list[Step]:
    """Raises UnsupportedModelError for operators that torch does not know here, all counted."""
    nodes = model.proto.graph.node
    unknown = [node for node in nodes if node.domain not in ("", "ai.onnx") or node.op_type not in OPS]
    if unknown:
        counts = Counter(node.op_type for node in unknown)
        first = unknown[0]
        others = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
        raise UnsupportedModelError(
            f"{model.name}: node '{first.name or first.output[0]}' uses {first.op_type}, which training "
            f"does not know (in all: {others}); replace it, or train the network where it was made"
        )
    opset = model.opset()
    return [
        Step(
            OPS[node.op_type],
            Call({a.name: _attribute(a) for a in node.attribute}, opset, len(node.output)),
            tuple(node.input),
            tuple(node.output),
            node.name,
            node.op_type,
        )
        for node in nodes
    ]


def read_roles(graph: onnx.GraphProto, held: Mapping[str, onnx.TensorProto]) -> tuple[list[str], list[str]]:
    """(trainable initializers, those that training moves), in the order of the nodes that read them."""
    trained: list[str] = []
    moved: list[str] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            tensor = held.get(name)
            if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
                continue
            if node.op_type == "BatchNormalization" and index > 2:
                moved.append(name)
            elif index in _WEIGHTED.get(node.op_type, ()) or (
                node.op_type in _MAYBE_WEIGHTED
                and int(np.prod(tensor.dims)) > 1
                and not _is_mask(node, tensor)
            ):
                trained.append(name)
    return list(dict.fromkeys(trained)), list(dict.fromkeys(moved))


def _is_mask(node: onnx.NodeProto, tensor: onnx.TensorProto) -> bool:
    """A constant that hides positions from a softmax, or bounds of a Where."""
    return node.op_type in ("Add", "Where", "Slice", "Unsqueeze") and bool(
        (tensor_array(tensor) < _MASK).any()
    )
