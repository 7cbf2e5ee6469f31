"""What a layer's weight takes in the file, before anything is encoded.

GSE (passes/packed.py): b bits a weight and 5 bits a group, over the rows as they are padded to whole units.
TCQ: b bits a weight, a unit of b bytes for the end of the chain, and a float16 scale a channel.
Packed integers: b bits a weight, a float16 scale and an int8 zero point a group. Integers with a type of
ONNX's own (passes/weights.py): their container, a scale in the weight's float type and a zero point a group.
Node, names and shared tables are counted flat: they depend on names, not on numbers.
"""

from __future__ import annotations

import math

from passes.layers import Layer
from passes.packed import is_packed
from passes.policy import Scheme
from passes.weights import container_bits
from runtime_ops.functions import padded_rows
from runtime_ops.gse import gse_bits
from runtime_ops.trellis import chain_bytes

__all__ = ["layer_bytes", "pays"]

_NODE_BYTES = 400


def layer_bytes(layer: Layer, scheme: Scheme, *, itemsize: int = 4, integer_activations: bool = False) -> int:
    """Bytes of the layer's weight in that scheme. itemsize: of the float weight."""
    if not pays(layer, scheme, itemsize=itemsize, integer_activations=integer_activations):
        return layer.weights * itemsize
    return _code_bytes(layer, scheme, itemsize, integer_activations) + _NODE_BYTES


def pays(layer: Layer, scheme: Scheme, *, itemsize: int = 4, integer_activations: bool = False) -> bool:
    """Whether the weight takes less than its floats do.

    With channels of a single weight, or rows that must be padded to whole units, it may not. Weights that
    integer kernels read are quantized for their sake.
    """
    if scheme.is_float:
        return False
    if integer_activations and not is_packed(scheme, integer_activations):
        return True
    stored = _code_bytes(layer, scheme, itemsize, integer_activations)
    if scheme.format != "gse" and is_packed(scheme, integer_activations):
        # Scales that float16 cannot hold take two bytes more (passes/scales.py).
        row_size = layer.weights // layer.weight_shape[layer.channel_axis]
        stored += 2 * layer.weights // min(scheme.block_size or row_size, row_size)
    return stored + _table_bytes(layer, scheme, integer_activations) <= layer.weights * itemsize


def _table_bytes(layer: Layer, scheme: Scheme, integer_activations: bool) -> int:
    """Of a stream's table of groups, which has an entry for the largest run that groups and rows share."""
    if scheme.format == "tcq" or not is_packed(scheme, integer_activations):
        return 0
    row_size = layer.weights // layer.weight_shape[layer.channel_axis]
    entries = row_size // math.gcd(row_size, min(scheme.block_size or row_size, row_size))
    # A short one is shared by many layers, and belongs to what a node takes.
    return 8 * entries if 8 * entries > _NODE_BYTES else 0


def _code_bytes(layer: Layer, scheme: Scheme, itemsize: int, integer_activations: bool) -> int:
    channels = layer.weight_shape[layer.channel_axis]
    row_size = math.prod(layer.weight_shape) // channels
    group = min(scheme.block_size or row_size, row_size)
    groups = -(-row_size // group)
    if scheme.format == "tcq":
        return chain_bytes(layer.weights, scheme.bits) + 2 * channels
    if scheme.format == "gse":
        rows = padded_rows(channels, row_size, group)
        return -(-gse_bits(rows, row_size, scheme.bits, group) // 8)
    if is_packed(scheme, integer_activations):
        rows = padded_rows(channels, row_size, group)
        return -(-rows * row_size * scheme.bits // 8) + 3 * rows * groups
    if scheme.granularity == "tensor":
        channels, groups, count = 1, 1, layer.weights
    else:
        count = layer.weights
    container = container_bits(scheme.bits)
    scales = channels * groups
    return -(-count * container // 8) + scales * itemsize + -(-scales * container // 8)
