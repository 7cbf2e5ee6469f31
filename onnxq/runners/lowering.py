"""From any of our files to what TVM's importer knows: fixed shapes, standard operators, weights as float.

1. The free first dimension of every input becomes the batch, other free ones 1; then shapes are folded.
2. Weights that stand as bit streams become float (passes/decode.py), and so does every DequantizeLinear of
   constants: the importer fails on 4 bits and on blocks, and TVM would compute them once at compile time
   anyway.
3. Pairs of Q and DQ around activations stay; the importer knows 8 and 16 bits. Activations of 4 bits are
   refused.

The values are those that ONNX Runtime computes with: (q - zero) * scale in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from passes.core.base import Context
from passes.core.errors import UnsupportedModelError
from passes.decode import Decode
from passes.graph.external_data import tensor_array
from passes.graph.model import Model
from passes.simplify import Simplify

__all__ = ["fixed_shapes", "float_weights", "lowered"]

Array = npt.NDArray[Any]
_WIDE = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32)


def lowered(model: Model, batch: int = 1) -> Model:
    """The model as the importer takes it, for `batch` samples a run; equal to it within float rounding.

    Raises:
        UnsupportedModelError: it has activations below 8 bits, or operators that no standard names.
    """
    context = Context(check=False)
    fixed = fixed_shapes(model, batch)
    decoded = Decode()(fixed, context).model
    result = float_weights(Simplify()(decoded, context).model)
    for node in result.proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedModelError(
                f"{model.name}: node '{node.name or node.output[0]}' uses {node.domain}::{node.op_type}, "
                "which TVM does not know; keep to standard operators for this device"
            )
    return result


def fixed_shapes(model: Model, batch: int) -> Model:
    """The model with no free dimension in its inputs; shapes of outputs and inner values are dropped."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        for position, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.Clear()
                dim.dim_value = batch if position == 0 else 1
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    del proto.graph.value_info[:]
    return model.with_proto(proto)


def float_weights(model: Model) -> Model:
    """The model with every DequantizeLinear of constants computed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    kept = []
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or any(name not in held for name in node.input if name):
            _check_width(model, node, held)
            kept.append(node)
            continue
        array = _dequantized(node, [tensor_array(held[name]) for name in node.input if name])
        proto.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    if len(kept) == len(proto.graph.node):
        return model
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    read = {name for node in copies for name in node.input} | {value.name for value in proto.graph.output}
    used = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    return model.with_proto(proto)


def _dequantized(node: onnx.NodeProto, arrays: list[Array]) -> Array:
    """(q - zero) * scale, per tensor, per channel (attribute axis) or per block of it (block_size)."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    codes, scale = arrays[0].astype(np.float32), arrays[1]
    zero = arrays[2].astype(np.float32) if len(arrays) > 2 else np.zeros_like(scale, dtype=np.float32)
    axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0))
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    elif block:
        take = np.arange(codes.shape[axis]) // block
        scale, zero = np.take(scale, take, axis), np.take(zero, take, axis)
    else:
        shape = [1] * codes.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((codes - zero) * scale.astype(np.float32), dtype=scale.dtype)


def _check_width(model: Model, node: onnx.NodeProto, held: dict[str, TensorProto]) -> None:
    if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[2] not in held:
        return
    kind = held[node.input[2]].data_type
    if kind not in _WIDE:
        raise UnsupportedModelError(
            f"{model.name}: node '{node.name or node.output[0]}' quantizes activations to "
            f"{TensorProto.DataType.Name(kind).lower()}, which TVM's importer does not know; use 8 or 16 "
            "bits for this device"
        )
