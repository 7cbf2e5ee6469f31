"""GSE (runtime_ops/gse.py, docs/GSE.md): groups of weights that share an exponent of 5 bits.

In a file a bit stream; in ONNX's own types, blocks of integers whose scales are powers of two. Rounding by
data also tries one exponent finer and one coarser, within the window of 5 bits. Activations in GSE are
simulated in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.core.errors import PolicyError
from passes.formats.base import Array, Float, RowGrid, RowTask, Simulation, Stream, WeightFormat, finite
from passes.formats.bitstream import BitStream, Parts, with_rows
from passes.formats.dequantize import Dequantize
from passes.formats.encoded import EncodedWeight, as_held, blocks, rows_of, shaped
from passes.formats.form import Form, Geometry
from passes.formats.integer import by_channel, in_groups
from passes.formats.scheme import Scheme
from passes.rounding.second_order import Grid, Rounded
from runtime_ops import GSETensor, encode_gse
from runtime_ops.bitpack import pack_bits
from runtime_ops.decode import decode_packed_gse
from runtime_ops.functions import GSE_OP, LEAST_OPSET, SIMULATED_OP, function, gse_tables
from runtime_ops.gse import EXPONENT_BITS, gse_bits

__all__ = ["GSE_BITS", "Gse"]

GSE_BITS = (2, 3, 4, 5, 6, 7, 8)
_SHIFTS = (0, -1, 1)


def _shaped(array: Array, axis: int, scheme: Scheme, gse: GSETensor) -> EncodedWeight:
    """A weight that was encoded elsewhere; `array`: the float weight, for its shape and type."""
    real = as_held(gse.decoded(), array.dtype)
    coded, decoded = blocks(gse.mantissas, scheme.block_size), blocks(real, scheme.block_size)
    found = shaped(array, axis, scheme, coded, decoded, gse.steps[..., np.newaxis], None)
    return replace(found, own=gse)


def _own(encoded: EncodedWeight) -> GSETensor:
    assert isinstance(encoded.own, GSETensor)  # `_shaped` made it
    return encoded.own


class _Stream(BitStream):
    op = GSE_OP

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        rows = self.padded(geometry)
        return -(-gse_bits(rows, geometry.row_size, scheme.bits, geometry.group) // 8)

    def wide_bytes(self, geometry: Geometry, scheme: Scheme) -> int:
        return 0

    def parts(self, encoded: EncodedWeight, scheme: Scheme, shape: tuple[int, ...], group_size: int) -> Parts:
        gse = _own(encoded)
        own = {
            "packed": pack_bits(with_rows(gse.mantissas, shape[0]), gse.bits),
            "exponents": pack_bits(with_rows(gse.codes, shape[0]), EXPONENT_BITS),
        }
        attributes = {"bits": gse.bits, "group_size": group_size, "exponent_base": gse.exponent_base}
        return Parts(own, gse_tables(gse.bits, group_size, gse.exponent_base, shape), attributes)


class _Rows(RowGrid):
    def __init__(self, task: RowTask, plain: EncodedWeight) -> None:
        self.task, self.plain = task, plain

    def grid(self) -> Grid:
        gse, groups = _own(self.plain), len(self.task.target)
        low, high = -(1 << (gse.bits - 1)), (1 << (gse.bits - 1)) - 1
        codes = [
            np.clip(gse.codes.astype(np.int32) + shift, 0, (1 << EXPONENT_BITS) - 1) for shift in _SHIFTS
        ]
        scales = np.stack([np.ldexp(1.0, code + gse.exponent_base) for code in codes])
        size = self.plain.rows.group_size
        return Grid(in_groups(scales, groups), in_groups(np.zeros_like(scales), groups), low, high, size)

    def encoded(self, found: Rounded) -> EncodedWeight:
        codes, scale, _ = by_channel(found, self.task)
        held = _own(self.plain)
        exponents = (np.frexp(scale)[1] - 1 - held.exponent_base).astype(np.uint8)
        # An all-zero group keeps the lowest exponent, as the plain encoder writes it.
        exponents[~_group_any(codes, held.group_size)] = 0
        gse = replace(held, mantissas=codes.astype(np.int8), codes=exponents)
        return _shaped(self.task.array, self.task.axis, self.task.scheme, gse)


def _group_any(codes: Float, size: int) -> npt.NDArray[np.bool_]:
    """[C, n]: whether a group has any code but 0."""
    starts = np.arange(0, codes.shape[1], size)
    return np.logical_or.reduceat(codes != 0, starts, axis=1)


def _decode(
    arrays: Sequence[Array], attributes: Mapping[str, int], shape: Sequence[int], out: Array | None
) -> Array:
    packed, exponents = arrays
    numbers = (attributes["bits"], attributes["group_size"], attributes["exponent_base"])
    return decode_packed_gse(packed, exponents, *numbers, shape, out)


def _text(attributes: Mapping[str, int], shape: Sequence[int], array: Callable[[int], Array | None]) -> str:
    return f"gse{attributes.get('bits', 0)}:block{attributes.get('group_size', 0)}"


def _simulated(scheme: Scheme, rows: list[int]) -> dict[str, Any]:
    truncate = int(scheme.encoder == "paper")
    return {"bits": scheme.bits, "group_size": scheme.block_size, "rows": rows, "truncate": truncate}


class Gse(WeightFormat):
    name = "gse"
    prefix = "gse"
    bits = GSE_BITS
    granularity = "block"
    block = 32
    example = "gse6"
    encoders = ("nearest", "paper")
    trainable = True
    streams = (Stream(GSE_OP, ("uint8", "uint8"), _decode, _text, lambda n: function(GSE_OP, n)),)
    simulation = Simulation(SIMULATED_OP, _simulated, lambda held: _text(held, (), lambda _: None))

    def __init__(self) -> None:
        self._forms: tuple[Form, ...] = (_Stream(), Dequantize("float"))

    def check(self, scheme: Scheme) -> None:
        if scheme.bits not in GSE_BITS:
            raise PolicyError(f"a GSE scheme has 2 to 8 bits, not {scheme.bits}")
        if scheme.granularity != "block" or not scheme.signed or not scheme.symmetric or scheme.dynamic:
            raise PolicyError("GSE has groups that share an exponent, and nothing else: gse6:block32")

    def activations(self, scheme: Scheme, text: str) -> Scheme:
        return scheme

    def holds_activations(self, scheme: Scheme) -> bool:
        return True

    def activation_opset(self, scheme: Scheme) -> int:
        return LEAST_OPSET

    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        weight = finite(array)
        gse = encode_gse(rows_of(weight, axis), scheme.bits, scheme.block_size, scheme.encoder)
        return _shaped(weight.astype(np.asarray(array).dtype), axis, scheme, gse)

    def code_range(self, scheme: Scheme) -> tuple[int, int]:
        return -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1

    def recoded(self, held: EncodedWeight, array: Array, scheme: Scheme, codes: Array) -> EncodedWeight:
        gse = replace(_own(held), mantissas=codes.astype(np.int8))
        return _shaped(array, held.channel_axis, scheme, gse)

    def grid(self, task: RowTask) -> RowGrid:
        return _Rows(task, self.encode(task.wanted, task.scheme, task.axis))

    def plain_only(self, scheme: Scheme) -> str | None:
        return "has the paper's encoder" if scheme.encoder == "paper" else None

    def losses(self, encoded: EncodedWeight) -> str | None:
        """GSE's exponents have 5 bits a tensor; what falls below them is told."""
        gse = _own(encoded)
        if not gse.raised:
            return None
        what = f"{gse.raised} group(s) have exponents below the 5-bit window of the tensor"
        return f"{what}; their weights were rounded on its coarsest step, off by up to {gse.loss:.3g} more"

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        return self._forms
