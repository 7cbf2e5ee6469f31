"""Weights as codes: from a float array and a scheme to initializers and a DequantizeLinear node.

Layouts. Per tensor: scalar scale. Per channel: scale [C] along the channel axis. Per block: the
weights of one output channel are laid out flat (input channels x kernel) as a row of a matrix
[C, K], cut into blocks of `block_size` (the last one may be short); scale [C, ceil(K / block_size)].
Matrices (Gemm, MatMul) keep their own layout, with the blocks along the other axis than the channels
and the scales laid out alike; others are reshaped (and transposed where the channels are not the
first axis) behind the DequantizeLinear.
GSE groups are such blocks, with powers of two as scales. The codes of a trellis (TCQ) are its windows. Bit
streams, for which ONNX has no type, are written by passes/packed.py.
Containers: 2 bits INT2 (opset 25), 4 bits INT4 (opset 21), 3 and 5-8 bits INT8, 16 bits INT16.
Shielded weights get a Reshape behind the DequantizeLinear, which keeps ONNX Runtime (seen in 1.31) from
fusing it into a kernel that fails or computes nonsense: INT2 anywhere, and scales per channel of a
MatMul whose weight stands on the left or has more than two axes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.editing import add_constant, packed_constant, unique_name
from passes.errors import UnsupportedModelError
from passes.layers import Layer
from passes.policy import Scheme
from passes.scales import as_stored, fits_half, represented
from runtime_ops import (
    GSETensor,
    IntegerFormat,
    affine_parameters,
    dequantize,
    encode_gse,
    quantize,
    symmetric_scale,
)
from runtime_ops.trellis import tcq_levels
from runtime_ops.trellis_rounding import Represent, round_trellis

__all__ = [
    "EncodedWeight",
    "channels_back",
    "code_range",
    "container_bits",
    "encode_layer",
    "encode_weight",
    "recoded",
    "required_opset",
    "shape_gse",
    "shape_integers",
    "shape_trellis",
    "trellis_scale",
    "unsigned",
    "weight_format",
    "write_weight",
]

_PACKED = {
    (2, True): ("INT2", 25),
    (2, False): ("UINT2", 25),
    (4, True): ("INT4", 21),
    (4, False): ("UINT4", 21),
}


@dataclass(frozen=True)
class Rows:
    """A weight's codes with one row an output channel: codes [C, K]; scale and zero_point [C, groups]."""

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    group_size: int


@dataclass(frozen=True)
class EncodedWeight:
    """Codes of one weight.

    codes, int8/int16 or unsigned (uint16 for a trellis): [C, K] for blocks of what is no matrix, else the
    weight's own shape. scale, float32: [], [C], or as many as there are blocks, laid out as the codes are.
    zero_point: as scale, None where it is 0. axis: of DequantizeLinear. channel_axis: of the weight.
    decoded, float32: the weight's own shape, what the network will compute with.
    rows: the same codes and scales by output channel. gse: the weight as GSE; None for integers.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any] | None
    axis: int
    block_size: int
    channel_axis: int
    decoded: npt.NDArray[np.float32]
    rows: Rows
    gse: GSETensor | None = None


def weight_format(scheme: Scheme) -> IntegerFormat:
    """8- and 16-bit symmetric formats drop the most negative code, as ONNX Runtime's kernels expect."""
    return IntegerFormat(
        scheme.bits, scheme.signed, narrow=scheme.symmetric and scheme.signed and scheme.bits >= 8
    )


def code_range(scheme: Scheme) -> tuple[int, int]:
    """Lowest and highest code of integers or GSE."""
    if scheme.format == "gse":
        return -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
    fmt = weight_format(scheme)
    return fmt.lowest, fmt.highest


def container_bits(bits: int) -> int:
    """Bits that one stored code takes in the file: what ONNX has a type for."""
    return bits if bits in (2, 4) else 8 if bits <= 8 else 16


def required_opset(scheme: Scheme) -> int:
    """The least opset whose DequantizeLinear holds the scheme (bit streams: passes/packed.py)."""
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


def _blocks(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """[C, blocks, size], the last block padded with zeros, which change neither ranges nor errors."""
    count = -(-rows.shape[1] // size)
    padded = np.pad(rows, ((0, 0), (0, count * size - rows.shape[1])))
    return padded.reshape(rows.shape[0], count, size)


def _parameters(
    grouped: npt.NDArray[np.float32], scheme: Scheme, axes: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Scale and zero point over `axes`. Symmetric unsigned codes have their zero in the middle."""
    fmt = weight_format(scheme)
    if not scheme.symmetric:
        low, high = grouped.min(axis=axes, keepdims=True), grouped.max(axis=axes, keepdims=True)
        return affine_parameters(low, high, fmt)
    signed = IntegerFormat(scheme.bits, narrow=scheme.bits >= 8)
    scale = symmetric_scale(grouped, signed, axes, search=scheme.bits < 8)
    return scale, np.full_like(scale, 0 if scheme.signed else 1 << (scheme.bits - 1), dtype=fmt.container)


def encode_weight(
    array: npt.NDArray[Any],
    scheme: Scheme,
    axis: int,
    floor: npt.NDArray[np.float32] | None = None,
    half: bool = False,
) -> EncodedWeight:
    """Encode a weight, float16 or float32 of any shape, with output channels on `axis`.

    floor: least scale per channel [C] (or scalar), used to keep int32 biases in range. half: scales of
    float16, if it can hold them, as bit streams have them; those of float16 weights always are
    (passes/scales.py). Scales below 8 bits are chosen by least squares.
    Raises UnsupportedModelError for NaN or Inf.
    """
    weight = np.asarray(array, np.float32)
    if not np.isfinite(weight).all():
        raise UnsupportedModelError("holds NaN or Inf")
    rows = _rows(weight, axis)
    if scheme.format == "gse":
        return _encode_gse(weight, rows, scheme, axis, np.asarray(array).dtype)
    if scheme.format == "tcq":
        found = round_trellis(rows[np.newaxis].astype(np.float64), scheme.bits, trellis_scale(scheme))
        return shape_trellis(np.asarray(array), axis, scheme, found.windows[0], found.scale[0])
    grouped = _blocks(rows, scheme.block_size) if scheme.granularity == "block" else rows
    axes: tuple[int, ...] = {"block": (2,), "channel": (1,), "tensor": (0, 1)}[scheme.granularity]
    scale, zero = _parameters(grouped, scheme, axes)
    if floor is not None:
        wanted = (
            floor.reshape([-1] + [1] * (scale.ndim - 1)) if scheme.granularity != "tensor" else floor.max()
        )
        scale = np.maximum(scale, wanted.astype(np.float32))
    half = half or np.asarray(array).dtype == np.float16
    scale = represented(scale, half and fits_half(scale, scheme.bits)).astype(np.float32)
    coded = quantize(grouped, scale, zero, weight_format(scheme))
    real = dequantize(coded, scale, zero)
    if np.asarray(array).dtype == np.float16:
        real = real.astype(np.float16).astype(np.float32)
    return _shaped(weight, axis, scheme, coded, real, scale, zero if zero.any() else None)


def _encode_gse(
    weight: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], scheme: Scheme, axis: int, dtype: Any
) -> EncodedWeight:
    gse = encode_gse(rows, scheme.bits, scheme.block_size, scheme.encoder)
    return shape_gse(weight.astype(dtype), axis, scheme, gse)


def shape_gse(array: npt.NDArray[Any], axis: int, scheme: Scheme, gse: GSETensor) -> EncodedWeight:
    """A weight that was encoded elsewhere; `array`: the float weight, for its shape and type."""
    real = gse.decoded()
    if array.dtype == np.float16:
        real = real.astype(np.float16).astype(np.float32)
    coded, decoded = _blocks(gse.mantissas, scheme.block_size), _blocks(real, scheme.block_size)
    shaped = _shaped(array, axis, scheme, coded, decoded, gse.steps[..., np.newaxis], None)
    return replace(shaped, gse=gse)


def trellis_scale(scheme: Scheme) -> Represent:
    """What the file makes of all scales of a trellis together; those of nothing but zeros are 0."""

    def represent(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(scale > 0, represented(scale, fits_half(scale.reshape(-1), scheme.bits)), 0.0)

    return represent


def shape_trellis(
    array: npt.NDArray[Any],
    axis: int,
    scheme: Scheme,
    windows: npt.NDArray[np.uint16],
    scale: npt.NDArray[Any],
) -> EncodedWeight:
    """As `shape_gse`: the windows of a trellis [C, K], and scales [C] as `trellis_scale` gives them."""
    held = scale.astype(np.float32)[:, np.newaxis]
    real = tcq_levels().astype(np.float32)[windows] * held
    if array.dtype == np.float16:
        real = real.astype(np.float16).astype(np.float32)
    return _shaped(array, axis, scheme, windows, real, held, None)


def shape_integers(
    array: npt.NDArray[Any],
    axis: int,
    scheme: Scheme,
    codes: npt.NDArray[Any],
    scale: npt.NDArray[Any],
    zero: npt.NDArray[Any],
) -> EncodedWeight:
    """As `shape_gse`: codes [C, K], scale and zero [C, groups], equal in all rows for one scale a tensor."""
    fmt = weight_format(scheme)
    if scheme.granularity == "block":
        coded = _blocks(codes.astype(fmt.container), scheme.block_size)
        held, middle = scale[..., np.newaxis], zero[..., np.newaxis]
    else:
        rows = 1 if scheme.granularity == "tensor" else len(scale)
        coded, held, middle = codes.astype(fmt.container), scale[:rows], zero[:rows]
    held, middle = held.astype(np.float32), middle.astype(fmt.container)
    real = dequantize(coded, held, middle)
    if array.dtype == np.float16:
        real = real.astype(np.float16).astype(np.float32)
    return _shaped(array, axis, scheme, coded, real, held, middle if middle.any() else None)


def recoded(
    held: EncodedWeight, array: npt.NDArray[Any], scheme: Scheme, codes: npt.NDArray[Any]
) -> EncodedWeight:
    """`held` with other codes [C, K] on the same scales; GSE or integers. array: the weight it is of."""
    if held.gse is None:
        return shape_integers(array, held.channel_axis, scheme, codes, held.rows.scale, held.rows.zero_point)
    gse = replace(held.gse, mantissas=codes.astype(np.int8))
    return shape_gse(array, held.channel_axis, scheme, gse)


def unsigned(encoded: EncodedWeight) -> EncodedWeight:
    """int8 codes and zero points as uint8 around 128; anything else as it is."""
    if encoded.codes.dtype != np.int8:
        return encoded
    zero = np.zeros(encoded.scale.shape, np.int8) if encoded.zero_point is None else encoded.zero_point
    codes, middle = ((array.astype(np.int16) + 128).astype(np.uint8) for array in (encoded.codes, zero))
    return replace(encoded, codes=codes, zero_point=middle)


def encode_layer(
    layer: Layer,
    array: npt.NDArray[Any],
    scheme: Scheme,
    floor: npt.NDArray[np.float32] | None = None,
    half: bool = False,
) -> EncodedWeight:
    """`encode_weight` for a layer. Its errors name the layer and the weight."""
    try:
        return encode_weight(array, scheme, layer.channel_axis, floor, half)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"weight '{layer.weight}' of {layer.name} {error}") from None


def _shaped(
    weight: npt.NDArray[Any],
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

    def by_row(item: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(item.reshape(len(scale), -1), (channels, scale.size // len(scale)))

    held_zero = np.zeros(scale.shape, coded.dtype) if zero is None else zero
    held = Rows(flat, by_row(scale), by_row(held_zero), scheme.block_size or rows)
    decoded = restore(real.reshape(channels, -1)[:, :rows])
    if scheme.granularity != "block":
        dims = (channels,) if scheme.granularity == "channel" else ()
        zeros = None if zero is None else zero.reshape(dims)
        return EncodedWeight(restore(flat), scale.reshape(dims), zeros, axis, 0, axis, decoded, held)

    def layout(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = matrix.T if weight.ndim == 2 and axis == 1 else matrix
        return np.ascontiguousarray(turned)

    zeros = None if zero is None else layout(zero.reshape(scale.shape[:2]))
    across = 1 - axis if weight.ndim == 2 else 1
    scales = layout(scale.reshape(scale.shape[:2]))
    return EncodedWeight(layout(flat), scales, zeros, across, scheme.block_size, axis, decoded, held)


def channels_back(rank: int, axis: int) -> list[int]:
    """Permutation that brings output channels, the first axis, back to `axis`."""
    order = list(range(1, rank))
    order.insert(axis, 0)
    return order


def write_weight(
    graph: gs.Graph,
    root: gs.Graph,
    hint: str,
    encoded: EncodedWeight,
    scheme: Scheme,
    dtype: Any,
    shield: bool = False,
) -> gs.Variable:
    """Add initializers and DequantizeLinear to `graph`, and what brings its result into the weight's
    shape; the float tensor they give.

    root: the outermost graph, for unique names. dtype: the float type of the weight. shield: see the
    module's docstring.
    """
    packed = _PACKED.get((scheme.bits, scheme.signed))

    def constant(suffix: str, codes: npt.NDArray[Any]) -> gs.Constant:
        if packed:
            return packed_constant(root, f"{hint}_{suffix}", codes, getattr(onnx.TensorProto, packed[0]))
        return add_constant(root, f"{hint}_{suffix}", codes)

    def emit(
        op: str, inputs: list[gs.Tensor], shape: tuple[int, ...], suffix: str, kind: Any = dtype, **attrs: Any
    ) -> gs.Variable:
        output = gs.Variable(unique_name(root, f"{hint}_{suffix}"), kind, list(shape))
        graph.nodes.append(gs.Node(op, unique_name(root, f"{hint}_{op}"), attrs, inputs, [output]))
        return output

    target = encoded.decoded.shape
    codes, scale, axis = encoded.codes, encoded.scale, encoded.axis
    zero = encoded.zero_point if encoded.zero_point is not None else np.zeros(scale.shape, codes.dtype)
    if codes.shape == target and (shield or scheme.bits == 2):
        codes, axis = codes[np.newaxis], axis + 1
        if encoded.block_size:
            scale, zero = scale[np.newaxis], zero[np.newaxis]
    attrs: dict[str, int] = {"axis": axis} if scale.ndim else {}
    if encoded.block_size:
        attrs["block_size"] = encoded.block_size
    # What DequantizeLinear gives has the type of its scales.
    steps = as_stored(scale) if np.dtype(dtype) == np.float16 else scale.astype(dtype)
    inputs = [constant("quantized", codes), add_constant(root, f"{hint}_scale", steps)]
    inputs.append(constant("zero_point", zero))
    result = emit("DequantizeLinear", inputs, codes.shape, "dequantized", steps.dtype, **attrs)
    if steps.dtype != dtype:
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        result = emit("Cast", [result], codes.shape, "cast", to=kind)
    if codes.shape == target:
        return result
    turned = encoded.codes.shape != target and encoded.channel_axis != 0
    others = [size for axis, size in enumerate(target) if axis != encoded.channel_axis]
    moved = (target[encoded.channel_axis], *others) if turned else target
    shape = add_constant(root, f"{hint}_shape", np.asarray(moved, np.int64))
    result = emit("Reshape", [result, shape], moved, "reshaped")
    if not turned:
        return result
    perm = channels_back(len(target), encoded.channel_axis)
    return emit("Transpose", [result], target, "transposed", perm=perm)
