"""Weights as integers: from a float array and a scheme to initializers and a DequantizeLinear node.

Layouts. Per tensor: scalar scale. Per channel: scale [C] along the channel axis. Per block: the
weights of one output channel are laid out flat (input channels x kernel) as a row of a matrix
[C, K], cut into blocks of `block_size` (the last one may be short), and reshaped back behind the
DequantizeLinear; scale [C, ceil(K / block_size)].
Containers: 2 bits INT2 (opset 25), 4 bits INT4 (opset 21), 3 and 5-8 bits INT8, 16 bits INT16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.errors import UnsupportedModelError
from passes.graph import add_constant, packed_constant, unique_name
from passes.policy import Scheme
from runtime_ops import IntegerFormat, affine_parameters, dequantize, quantize, symmetric_scale

__all__ = ["EncodedWeight", "container_bits", "encode_weight", "required_opset", "weight_format", "write_weight"]

_PACKED = {
    (2, True): ("INT2", 25),
    (2, False): ("UINT2", 25),
    (4, True): ("INT4", 21),
    (4, False): ("UINT4", 21),
}


@dataclass(frozen=True)
class EncodedWeight:
    """Integer codes of one weight.

    codes, int8/int16 or unsigned: [C, K] for blocks, else the weight's own shape. scale, float32:
    [], [C] or [C, blocks]. zero_point: as scale, None when symmetric. axis: of DequantizeLinear.
    decoded, float32: the weight's own shape, what the network will compute with.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any] | None
    axis: int
    block_size: int
    decoded: npt.NDArray[np.float32]


def weight_format(scheme: Scheme) -> IntegerFormat:
    """8- and 16-bit symmetric formats drop the most negative code, as ONNX Runtime's kernels expect."""
    return IntegerFormat(scheme.bits, scheme.signed, narrow=scheme.symmetric and scheme.signed and scheme.bits >= 8)


def container_bits(bits: int) -> int:
    """Bits that one stored code takes in the file: what ONNX has a type for."""
    return bits if bits in (2, 4) else 8 if bits <= 8 else 16


def required_opset(scheme: Scheme) -> int:
    """The least opset whose DequantizeLinear holds the scheme."""
    if scheme.is_float:
        return 0
    packed = _PACKED.get((scheme.bits, scheme.signed))
    if packed:
        return packed[1]
    if scheme.granularity == "block" or scheme.bits == 16:
        return 21
    return 13 if scheme.granularity == "channel" else 10


def _rows(array: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """[C, K]: one row an output channel."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _blocks(rows: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """[C, blocks, size], the last block padded by repeating the row's last weight."""
    count = -(-rows.shape[1] // size)
    padded = np.pad(rows, ((0, 0), (0, count * size - rows.shape[1])), mode="edge")
    return padded.reshape(rows.shape[0], count, size)


def encode_weight(
    array: npt.NDArray[Any], scheme: Scheme, axis: int, floor: npt.NDArray[np.float32] | None = None
) -> EncodedWeight:
    """Encode a weight, any float dtype and shape with output channels on `axis`.

    floor: least scale per channel [C] (or scalar), used to keep int32 biases in range.
    Scales below 8 bits are chosen by least squares. Raises UnsupportedModelError for NaN or Inf.
    """
    weight = np.asarray(array, np.float32)
    if not np.isfinite(weight).all():
        raise UnsupportedModelError("holds NaN or Inf")
    fmt = weight_format(scheme)
    rows = _rows(weight, axis)
    grouped = _blocks(rows, scheme.block_size) if scheme.granularity == "block" else rows
    axes: tuple[int, ...] = {"block": (2,), "channel": (1,), "tensor": (0, 1)}[scheme.granularity]
    if scheme.symmetric:
        scale = symmetric_scale(grouped, fmt, axes, search=scheme.bits < 8)
        zero = np.zeros_like(scale, dtype=fmt.container)
    else:
        low, high = grouped.min(axis=axes, keepdims=True), grouped.max(axis=axes, keepdims=True)
        scale, zero = affine_parameters(low, high, fmt)
    if floor is not None:
        wanted = floor.reshape([-1] + [1] * (scale.ndim - 1)) if scheme.granularity != "tensor" else floor.max()
        scale = np.maximum(scale, wanted.astype(np.float32))
    coded = quantize(grouped, scale, zero, fmt)
    real = dequantize(coded, scale, zero)
    return _shaped(weight, axis, scheme, coded, real, scale, None if scheme.symmetric else zero)


def _shaped(
    weight: npt.NDArray[np.float32],
    axis: int,
    scheme: Scheme,
    coded: npt.NDArray[Any],
    real: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    zero: npt.NDArray[Any] | None,
) -> EncodedWeight:
    """Codes and scales in the layout of the module's docstring."""
    channels = weight.shape[axis]
    rows = weight.size // channels

    def restore(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        moved = matrix.reshape([channels, *np.delete(weight.shape, axis)])
        return np.ascontiguousarray(np.moveaxis(moved, 0, axis))

    flat = coded.reshape(channels, -1)[:, :rows]
    decoded = restore(real.reshape(channels, -1)[:, :rows])
    if scheme.granularity == "block":
        shape = scale.shape[:2]
        zeros = None if zero is None else zero.reshape(shape)
        return EncodedWeight(np.ascontiguousarray(flat), scale.reshape(shape), zeros, 1, scheme.block_size, decoded)
    dims = (channels,) if scheme.granularity == "channel" else ()
    zeros = None if zero is None else zero.reshape(dims)
    return EncodedWeight(restore(flat), scale.reshape(dims), zeros, axis, 0, decoded)


def write_weight(
    graph: gs.Graph, root: gs.Graph, hint: str, encoded: EncodedWeight, scheme: Scheme, dtype: Any
) -> gs.Variable:
    """Add initializers and DequantizeLinear (and Reshape for blocks) to `graph`; the float tensor they give.

    root: the outermost graph, for unique names. dtype: the float type of the weight.
    """

    def constant(suffix: str, codes: npt.NDArray[Any]) -> gs.Constant:
        packed = _PACKED.get((scheme.bits, scheme.signed))
        if packed:
            return packed_constant(root, f"{hint}_{suffix}", codes, getattr(onnx.TensorProto, packed[0]))
        return add_constant(root, f"{hint}_{suffix}", codes)

    codes = constant("quantized", encoded.codes)
    zero = encoded.zero_point if encoded.zero_point is not None else np.zeros(encoded.scale.shape, encoded.codes.dtype)
    inputs = [codes, add_constant(root, f"{hint}_scale", encoded.scale.astype(dtype)), constant("zero_point", zero)]
    attrs: dict[str, int] = {"axis": encoded.axis} if encoded.scale.ndim else {}
    if encoded.block_size:
        attrs["block_size"] = encoded.block_size
    output = gs.Variable(unique_name(root, f"{hint}_dequantized"), dtype, list(encoded.codes.shape))
    name = unique_name(root, f"{hint}_DequantizeLinear")
    graph.nodes.append(gs.Node("DequantizeLinear", name, attrs, inputs, [output]))
    if encoded.codes.shape == encoded.decoded.shape:
        return output
    shape = add_constant(root, f"{hint}_shape", np.asarray(encoded.decoded.shape, np.int64))
    reshaped = gs.Variable(unique_name(root, f"{hint}_reshaped"), dtype, list(encoded.decoded.shape))
    graph.nodes.append(gs.Node("Reshape", unique_name(root, f"{hint}_Reshape"), {}, [output, shape], [reshaped]))
    return reshaped
