"""float16: weights stored in half the bytes, for layers that must not be quantized.

A Cast, which every runtime folds when a session is created, makes them float32 again: kernels and speed are
those of float. A weight beyond the range of float16 becomes its largest number, with a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.core.errors import PolicyError
from passes.formats.base import Array, WeightFormat, finite
from passes.formats.encoded import EncodedWeight, rows_of, shaped
from passes.formats.form import Form, Geometry
from passes.formats.scheme import Scheme
from passes.graph.editing import add_constant, unique_name

__all__ = ["Float16"]

_MOST = float(np.finfo(np.float16).max)


class _Cast(Form):
    """A float16 initializer and a Cast to the type of the weight."""

    name = "cast"
    gives = "float"
    standard = True
    half = False

    def opset(self, scheme: Scheme, dtype: Any = np.float32) -> int:
        return 9

    def bits(self, scheme: Scheme) -> int:
        return 16

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        return 2 * geometry.weights

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
        stored = add_constant(root, f"{hint}_float16", encoded.codes)
        if np.dtype(dtype) == np.float16:
            return stored
        output = gs.Variable(unique_name(root, f"{hint}_cast"), dtype, list(encoded.codes.shape))
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        graph.nodes.append(
            gs.Node("Cast", unique_name(root, f"{hint}_Cast"), {"to": kind}, [stored], [output])
        )
        return output


class Float16(WeightFormat):
    name = "float16"
    prefix = "float"
    bits = (16,)
    says_granularity = False
    example = "float16"
    rounds = False
    learnable = False

    def check(self, scheme: Scheme) -> None:
        if scheme.bits != 16:
            raise PolicyError(f"weights are stored in float or float16, not in float{scheme.bits}")
        if scheme.granularity != "tensor" or not scheme.signed or not scheme.symmetric or scheme.dynamic:
            raise PolicyError("float16 has no scales and nothing else to choose: float16")

    def encode(
        self,
        array: Array,
        scheme: Scheme,
        axis: int,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        weight = finite(array)
        codes = np.clip(weight, -_MOST, _MOST).astype(np.float16)
        rows = rows_of(codes, axis)
        found = shaped(codes, axis, scheme, rows, rows.astype(np.float32), np.ones((1, 1), np.float32), None)
        return replace(found, own=int(np.count_nonzero(np.abs(weight) > _MOST)))

    def plain_only(self, scheme: Scheme) -> str | None:
        return "is stored in float16"

    def losses(self, encoded: EncodedWeight) -> str | None:
        if not encoded.own:
            return None
        return f"{encoded.own} weight(s) are beyond the range of float16 and became its largest number"

    def forms(self, scheme: Scheme) -> Sequence[Form]:
        return (_Cast(),)
