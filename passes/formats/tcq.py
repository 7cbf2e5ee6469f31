"""TCQ (runtime_ops/trellis.py, docs/GSE.md): trellis-coded weights of 2 to 5 bits, one scale per channel.

In a file always a bit stream: b bits a weight, a unit of b bytes for the end of the chain, and a scale a
channel. Rounding, plain or by data, is a search for the best path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from passes.core.errors import PolicyError
from passes.formats.base import Array, Metric, RowTask, Stream, WeightFormat, finite
from passes.formats.bitstream import BitStream, Parts
from passes.formats.encoded import EncodedWeight, as_held, rows_of, shaped
from passes.formats.form import Form, Geometry
from passes.formats.scales import as_stored, fits_half, represented
from passes.formats.scheme import Scheme
from passes.rounding.learned import Learning
from passes.rounding.trellis import Represent, first_scale, round_trellis
from runtime_ops.decode import decode_packed_tcq
from runtime_ops.functions import TCQ_OP, function, tcq_tables
from runtime_ops.trellis import TCQ_BITS, chain_bytes, pack_windows, tcq_levels

__all__ = ["Tcq"]


def _represent(scheme: Scheme) -> Represent:
    """What the file makes of all scales of a trellis together; those of nothing but zeros are 0."""

    def represent(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(scale > 0, represented(scale, fits_half(scale.reshape(-1), scheme.bits)), 0.0)

    return represent


def _shaped(array: Array, axis: int, scheme: Scheme, windows: Array, scale: Array) -> EncodedWeight:
    """Of the float weight `array`: windows of a trellis [C, K] and scales [C] as `_represent` gives them."""
    held = scale.astype(np.float32)[:, np.newaxis]
    real = as_held(tcq_levels().astype(np.float32)[windows] * held, array.dtype)
    return shaped(array, axis, scheme, windows, real, held, None)


class _Stream(BitStream):
    op = TCQ_OP

    def padded(self, geometry: Geometry) -> int:
        return geometry.channels

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        return chain_bytes(geometry.weights, scheme.bits) + 2 * geometry.channels

    def table_bytes(self, geometry: Geometry) -> int:
        return 0

    def parts(self, encoded: EncodedWeight, scheme: Scheme, shape: tuple[int, ...], group_size: int) -> Parts:
        own = {
            "packed": pack_windows(encoded.rows.codes.T, scheme.bits),
            "scale": as_stored(encoded.rows.scale.reshape(-1)),
        }
        return Parts(own, tcq_tables(scheme.bits, shape), {"bits": scheme.bits})


def _decode(
    arrays: Sequence[Array], attributes: Mapping[str, int], shape: Sequence[int], out: Array | None
) -> Array:
    packed, scale, levels = arrays
    return decode_packed_tcq(packed, scale, levels, attributes["bits"], shape, out)


def _text(attributes: Mapping[str, int], shape: Sequence[int], array: Callable[[int], Array | None]) -> str:
    return f"tcq{attributes.get('bits', 0)}"


class Tcq(WeightFormat):
    name = "tcq"
    prefix = "tcq"
    bits = TCQ_BITS
    granularity = "channel"
    says_granularity = False
    example = "tcq3"
    learnable = False
    no_standard_form = "a trellis has no form in ONNX's own types"
    streams = (Stream(TCQ_OP, ("uint8", "scale", "int8"), _decode, _text, lambda n: function(TCQ_OP, n)),)

    def __init__(self) -> None:
        self._forms: tuple[Form, ...] = (_Stream(),)

    def check(self, scheme: Scheme) -> None:
        if scheme.bits not in TCQ_BITS:
            raise PolicyError(f"a TCQ scheme has {TCQ_BITS[0]} to {TCQ_BITS[-1]} bits, not {scheme.bits}")
        if scheme.granularity != "channel" or not scheme.signed or not scheme.symmetric or scheme.dynamic:
            raise PolicyError("TCQ has one scale per channel, and nothing else to choose: tcq3")

    def activations(self, scheme: Scheme, text: str) -> Scheme:
        raise PolicyError(f"'{text}': a trellis holds weights, no activations; write uint8, gse6 or float")

    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        rows = rows_of(finite(array), axis).astype(np.float64)
        found = round_trellis(rows[np.newaxis], scheme.bits, _represent(scheme))
        return _shaped(np.asarray(array), axis, scheme, found.windows[0], found.scale[0])

    def placeholder(self, array: Array, scheme: Scheme, axis: int) -> EncodedWeight | None:
        """An empty trellis: the search would take most of the time."""
        rows = rows_of(array, axis)
        scale = _represent(scheme)(first_scale(rows))
        return _shaped(array, axis, scheme, np.zeros(rows.shape, np.uint16), scale)

    def rounded(
        self, task: RowTask, metric: Metric | None, sweeps: int, learning: Learning | None
    ) -> EncodedWeight:
        scheme = task.scheme
        found = round_trellis(task.target, scheme.bits, _represent(scheme), *(metric or ()), sweeps=sweeps)
        windows = found.windows.reshape(-1, found.windows.shape[-1])
        return _shaped(task.array, task.axis, scheme, windows, found.scale.reshape(-1))

    def quick_sweeps(self, sweeps: int) -> int:
        """One search of a trellis is enough."""
        return 0

    def unlearned(self, scheme: Scheme) -> str | None:
        return "a trellis is not learned: rounded as by gptq"

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        return self._forms
