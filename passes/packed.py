"""Weights as bit streams: GSE, TCQ, and integers of 3, 5, 6 and 7 bits, for which ONNX has no type.

A stream is a uint8 initializer; a node of the domain `ai.onnxq` (runtime_ops/functions.py) reads it, whose
function, in standard operators, the file brings along. The node gives the weight with its output channels
first; behind it stand, where needed,

1. a Slice, if rows of zeros were added so that the stream consists of whole units (few channels of odd size),
2. a Cast, if the weight is float16,
3. a Transpose, if the output channels are not the first axis.

Scales are float16, or float32 where float16 cannot hold them (passes/scales.py).
Integer streams hold signed codes: an unsigned scheme is the same grid, codes and zero points less 2^(b-1).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.editing import add_constant, unique_name
from passes.policy import LayerPolicy, Scheme
from passes.scales import as_stored
from passes.weights import EncodedWeight, Rows, channels_back
from runtime_ops.bitpack import pack_bits
from runtime_ops.functions import (
    DOMAIN,
    GSE_OP,
    LEAST_OPSET,
    PACKED_OP,
    TCQ_OP,
    affine_tables,
    gse_tables,
    padded_rows,
    tcq_tables,
)
from runtime_ops.gse import EXPONENT_BITS, GSETensor
from runtime_ops.trellis import pack_windows

__all__ = ["LEAST_OPSET", "Storage", "is_packed", "write_packed"]

_NO_TYPE = (3, 5, 6, 7)


def is_packed(weights: Scheme, integer_activations: bool, standard: bool = False) -> bool:
    """Whether weights of that scheme become a bit stream.

    Integers do where ONNX has no type of their width and no integer kernel is to read them. standard: never.
    """
    if standard or weights.is_float:
        return False
    return not weights.is_integer or (weights.bits in _NO_TYPE and not integer_activations)


@dataclass(frozen=True)
class Storage:
    """What decides how weights are stored, beside their schemes; the same for all layers of a model.

    standard: in ONNX's own types only. fuses: integer kernels read weights whose activations are integers.
    """

    standard: bool = False
    fuses: bool = True

    def packs(self, choice: LayerPolicy) -> bool:
        """Whether a layer's weights become a bit stream."""
        return is_packed(choice.weights, self.fuses and choice.activations.is_integer, self.standard)


def _table(graph: gs.Graph, root: gs.Graph, name: str, array: npt.NDArray[Any]) -> gs.Constant:
    """A constant that all nodes share which need the same one. A nested graph gets its own."""
    held = graph.__dict__.setdefault("_onnxq_tables", {})
    digest = hashlib.sha256(repr((array.dtype.str, array.shape)).encode() + array.tobytes()).hexdigest()
    if digest not in held:
        held[digest] = add_constant(root, f"onnxq_{name}", array)
    return held[digest]


def _with_rows(matrix: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


def _gse_inputs(
    gse: GSETensor, shape: tuple[int, ...], group_size: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """(arrays of this weight, tables, attributes) of a GSEDequantizeLinear."""
    own = {
        "packed": pack_bits(_with_rows(gse.mantissas, shape[0]), gse.bits),
        "exponents": pack_bits(_with_rows(gse.codes, shape[0]), EXPONENT_BITS),
    }
    attributes = {"bits": gse.bits, "group_size": group_size, "exponent_base": gse.exponent_base}
    return own, gse_tables(gse.bits, group_size, gse.exponent_base, shape), attributes


def _integer_inputs(
    rows: Rows, scheme: Scheme, shape: tuple[int, ...], group_size: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """(arrays of this weight, tables, attributes) of a PackedDequantizeLinear."""
    middle = 0 if scheme.signed else 1 << (scheme.bits - 1)
    codes, zeros = (array.astype(np.int16) - middle for array in (rows.codes, rows.zero_point))
    own = {
        "packed": pack_bits(_with_rows(codes, shape[0]), scheme.bits),
        "scale": _with_rows(as_stored(rows.scale), shape[0]),
        "zero_point": _with_rows(zeros, shape[0]).astype(np.int8),
    }
    tables = dict(affine_tables(scheme.bits, group_size, shape))
    return own, tables, {"bits": scheme.bits, "group_size": group_size}


def _tcq_inputs(
    rows: Rows, scheme: Scheme, shape: tuple[int, ...]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """(arrays of this weight, tables, attributes) of a TCQDequantizeLinear."""
    own: dict[str, npt.NDArray[Any]] = {
        "packed": pack_windows(rows.codes.T, scheme.bits),
        "scale": as_stored(rows.scale.reshape(-1)),
    }
    return own, tcq_tables(scheme.bits, shape), {"bits": scheme.bits}


def write_packed(
    graph: gs.Graph, root: gs.Graph, hint: str, encoded: EncodedWeight, scheme: Scheme, dtype: Any
) -> gs.Variable:
    """Add the stream and the nodes of the module's docstring to `graph`; the float tensor that they give.

    root: the outermost graph, for unique names. dtype: the float type of the weight.
    """
    target, axis = encoded.decoded.shape, encoded.channel_axis
    others = [size for index, size in enumerate(target) if index != axis]
    channels, row_size = encoded.rows.codes.shape
    # A group longer than the row is the row, and says so: the tables of the function shrink.
    group_size = min(encoded.rows.group_size, row_size)
    padded = channels if scheme.format == "tcq" else padded_rows(channels, row_size, group_size)
    shape = (padded, *others)
    if scheme.format == "tcq":
        op = TCQ_OP
        own, tables, attributes = _tcq_inputs(encoded.rows, scheme, shape)
    elif encoded.gse is not None:
        op = GSE_OP
        own, tables, attributes = _gse_inputs(encoded.gse, shape, group_size)
    else:
        op = PACKED_OP
        own, tables, attributes = _integer_inputs(encoded.rows, scheme, shape, group_size)
    inputs = [add_constant(root, f"{hint}_{name}", array) for name, array in own.items()]
    inputs += [_table(graph, root, name, array) for name, array in tables.items()]

    def emit(
        kind: str, feeds: list[gs.Tensor], dims: tuple[int, ...], suffix: str, element: Any, **attrs: Any
    ) -> gs.Variable:
        output = gs.Variable(unique_name(root, f"{hint}_{suffix}"), element, list(dims))
        name = unique_name(root, f"{hint}_{kind}")
        domain = DOMAIN if kind == op else None
        graph.nodes.append(gs.Node(kind, name, attrs, feeds, [output], domain=domain))
        return output

    result = emit(op, inputs, shape, "decoded", np.float32, shape=list(shape), **attributes)
    if shape[0] != channels:
        starts, stops = (_table(graph, root, "rows", np.asarray([n], np.int64)) for n in (0, channels))
        result = emit("Slice", [result, starts, stops], (channels, *others), "rows", np.float32)
    if np.dtype(dtype) != np.float32:
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        result = emit("Cast", [result], (channels, *others), "cast", dtype, to=kind)
    if axis == 0:
        return result
    return emit("Transpose", [result], target, "transposed", dtype, perm=channels_back(len(target), axis))
