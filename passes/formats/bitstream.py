"""Weights as bit streams, for which ONNX has no type: what the forms of several formats have in common.

A stream is a uint8 initializer; a node of the domain `ai.onnxq` (runtime_ops/functions.py) reads it, whose
function, in standard operators, the file brings along. The node gives the weight with its output channels
first; behind it stand, where needed,

1. a Slice, if rows of zeros were added so that the stream consists of whole units (few channels of odd size),
2. a Cast, if the weight is float16,
3. a Transpose, if the output channels are not the first axis.

Scales are float16, or float32 where float16 cannot hold them (passes/formats/scales.py).
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.formats.encoded import EncodedWeight, channels_back
from passes.formats.form import Form, Geometry
from passes.formats.scheme import Scheme
from passes.graph.editing import add_constant, unique_name
from runtime_ops.functions import DOMAIN, LEAST_OPSET, padded_rows

__all__ = ["BitStream", "Parts", "with_rows"]

Array = npt.NDArray[Any]
# What a node takes beside the numbers of its weight; a table that is no longer is counted with it.
NODE_BYTES = 400


@dataclass(frozen=True)
class Parts:
    """Of one stream's node: arrays of this weight, tables that nodes share, attributes; all in order."""

    own: Mapping[str, Array]
    tables: Mapping[str, Array]
    attributes: Mapping[str, Any]


def with_rows(matrix: Array, rows: int) -> Array:
    """The matrix with rows of zeros behind it, `rows` in all."""
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


def _table(graph: gs.Graph, root: gs.Graph, name: str, array: Array) -> gs.Constant:
    """A constant that all nodes share which need the same one. A nested graph gets its own."""
    held = graph.__dict__.setdefault("_onnxq_tables", {})
    digest = hashlib.sha256(repr((array.dtype.str, array.shape)).encode() + array.tobytes()).hexdigest()
    if digest not in held:
        held[digest] = add_constant(root, f"onnxq_{name}", array)
    return held[digest]


class BitStream(Form):
    """A form whose node is `op` of the domain `ai.onnxq`."""

    name = "stream"
    gives = "float"
    standard = False
    half = True
    op: str

    def opset(self, scheme: Scheme, dtype: Any = np.float32) -> int:
        return LEAST_OPSET

    def bits(self, scheme: Scheme) -> int:
        return scheme.bits

    def padded(self, geometry: Geometry) -> int:
        """Rows of the stream: as many as fill whole units."""
        return padded_rows(geometry.channels, geometry.row_size, geometry.group)

    def extra_bytes(self, geometry: Geometry, scheme: Scheme) -> int:
        return self.wide_bytes(geometry, scheme) + self.table_bytes(geometry)

    def wide_bytes(self, geometry: Geometry, scheme: Scheme) -> int:
        """Scales that float16 cannot hold take two bytes more (passes/formats/scales.py)."""
        return 2 * geometry.weights // geometry.group

    def table_bytes(self, geometry: Geometry) -> int:
        """Of the table of groups, which has an entry for the largest run that groups and rows share."""
        entries = geometry.row_size // math.gcd(geometry.row_size, geometry.group)
        # A short one is shared by many layers, and belongs to what a node takes.
        return 8 * entries if 8 * entries > NODE_BYTES else 0

    @abstractmethod
    def parts(self, encoded: EncodedWeight, scheme: Scheme, shape: tuple[int, ...], group_size: int) -> Parts:
        """What the node reads. shape: of what it gives; group_size: at most a row."""

    def write(
        self,
        graph: gs.Graph,
        root: gs.Graph,
        hint: str,
        encoded: EncodedWeight,
        scheme: Scheme,
        dtype: Any,
        shield: bool = False,
    ) -> gs.Tensor:
        target, axis = encoded.decoded.shape, encoded.channel_axis
        others = [size for index, size in enumerate(target) if index != axis]
        channels, row_size = encoded.rows.codes.shape
        # A group longer than the row is the row, and says so: the tables of the function shrink.
        group_size = min(encoded.rows.group_size, row_size)
        shape = (self.padded(Geometry(channels, row_size, group_size)), *others)
        parts = self.parts(encoded, scheme, shape, group_size)
        inputs = [add_constant(root, f"{hint}_{name}", array) for name, array in parts.own.items()]
        inputs += [_table(graph, root, name, array) for name, array in parts.tables.items()]

        def emit(
            kind: str, feeds: list[gs.Tensor], dims: tuple[int, ...], suffix: str, element: Any, **attrs: Any
        ) -> gs.Variable:
            output = gs.Variable(unique_name(root, f"{hint}_{suffix}"), element, list(dims))
            name = unique_name(root, f"{hint}_{kind}")
            domain = DOMAIN if kind == self.op else None
            graph.nodes.append(gs.Node(kind, name, attrs, feeds, [output], domain=domain))
            return output

        result = emit(self.op, inputs, shape, "decoded", np.float32, shape=list(shape), **parts.attributes)
        if shape[0] != channels:
            starts, stops = (_table(graph, root, "rows", np.asarray([n], np.int64)) for n in (0, channels))
            result = emit("Slice", [result, starts, stops], (channels, *others), "rows", np.float32)
        if np.dtype(dtype) != np.float32:
            kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            result = emit("Cast", [result], (channels, *others), "cast", dtype, to=kind)
        if axis == 0:
            return result
        return emit("Transpose", [result], target, "transposed", dtype, perm=channels_back(len(target), axis))
