"""GSEDequantizeLinear as a Python kernel, through onnxruntime-extensions: the readable reference.

What the operator has to do stands here as one call of the numpy reference. It is slow (the extension hands
results over as lists of numbers) and meant for comparing, or for a machine without a compiler; files need
neither, since their own functions stand in for a missing kernel.

What onnxruntime-extensions (0.15) can do for a Python operator, and what it cannot:
- any domain: the operator's type is written `domain::name`;
- no float16: a kernel that gets one ends the process, so there is none for PackedDequantizeLinear;
- attributes are single integers, floats or strings: the list `shape` cannot be read, so the shape is taken
  from the input `dims` of the function's tables, and the number of rows (-1 there) from the stream's length,
  in which the rows of a file fill whole units (runtime_ops/functions.py);
- inputs are a fixed list, none is optional: a node must have all tables, as files written by onnxq do;
- an exception ends the process instead of becoming an error of ONNX Runtime: malformed input is logged, and
  the output is one NaN. (The C++ kernel gives an error with the node's name, which is not known here.)
- the operator is known to every session of the process that registers the extension from then on; such a
  session must not register the C++ library too, since one operator cannot have two kernels.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_ops.functions import DOMAIN, GSE_OP
from runtime_ops.gse import decode_gse

__all__ = ["register_python"]

Array = npt.NDArray[Any]
_LOG = logging.getLogger(__name__)


def _decode(packed: Array, exponents: Array, *tables: Array, **attributes: int) -> Array:
    """tables: scales, groups, granules, index, dims, unpack, half, sign, unpack5, modulus."""
    bits, size, base = (attributes[name] for name in ("bits", "group_size", "exponent_base"))
    rows, *others = (int(axis) for axis in tables[4])
    try:
        if rows == -1:
            rows = packed.size * 8 // max(bits * math.prod(others), 1)
        return decode_gse(packed, exponents, bits, size, base, (rows, *others))
    except ValueError as error:
        _LOG.error("%s: %s", GSE_OP, error)
        return np.full(1, np.nan, np.float32)


@functools.cache
def _declare() -> str:
    """Makes the kernel known to the extension, once in a process; gives the extension's library."""
    from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

    byte, real = PyCustomOpDef.dt_uint8, PyCustomOpDef.dt_float
    whole, short = PyCustomOpDef.dt_int64, PyCustomOpDef.dt_int32
    geometry = [whole] * 4  # groups, granules, index, dims
    mantissas = [real] * 3  # unpack, half, sign
    onnx_op(
        op_type=f"{DOMAIN}::{GSE_OP}",
        inputs=[byte, byte, real, *geometry, *mantissas, real, short],
        outputs=[real],
        attrs=dict.fromkeys(("bits", "group_size", "exponent_base"), whole),
    )(_decode)
    library: str = get_library_path()
    return library


def register_python(session_options: Any) -> None:
    """Make the Python kernel known to sessions with these onnxruntime.SessionOptions."""
    session_options.register_custom_ops_library(_declare())
