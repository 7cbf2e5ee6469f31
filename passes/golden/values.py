"""What golden texts say of constants, types and attributes (rules 3 and 4 of passes/golden/text.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from passes.graph.external_data import tensor_array

__all__ = ["attribute_text", "tensor_text", "type_text"]

_WRITTEN_OUT = 8
_DIGITS = 6
# Powers of ten for the exponents of all doubles, from the least on.
_LEAST = 324
_POWERS = 10.0 ** np.arange(-_LEAST, 309)
_CHUNK = 2**14

Ints = npt.NDArray[np.signedinteger[Any]]


def _dtype(number: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _digits(part: npt.NDArray[Any]) -> tuple[Ints, Ints, Ints]:
    """(digits, exponent, kind) of floats, the same for all but few neighbouring ones."""
    x = part.astype(np.float64)
    usual = np.isfinite(x) & (x != 0)
    safe = np.where(usual, x, 1.0)
    exponent = np.floor(np.log10(np.abs(safe))).astype(np.int64)
    # In two steps, as 10 to the power of (5 - exponent) overflows for subnormal numbers.
    scaled = np.rint(safe / _POWERS[exponent + _LEAST] * 10.0 ** (_DIGITS - 1)).astype(np.int64)
    carried = np.abs(scaled) == 10**_DIGITS
    scaled, exponent = np.where(carried, scaled // 10, scaled), exponent + carried
    # Zero is zero whatever its sign; NaN and the infinities have no digits.
    kind = np.where(np.isnan(x), 1, np.where(x == np.inf, 2, np.where(x == -np.inf, 3, 0)))
    exponent, scaled = np.where(usual, exponent, 0), np.where(usual, scaled, kind)
    return scaled, exponent.astype(np.int16), kind.astype(np.int8)


def _rounded_digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of the values at 6 significant digits: of all digits, then all exponents, then all kinds.

    Worked out some thousand values at a time, which stay in the processor's cache.
    """
    x = array.reshape(-1)
    columns = tuple(np.empty(x.size, kind) for kind in (np.int64, np.int16, np.int8))
    total = hashlib.sha256()
    for start in range(0, x.size, _CHUNK):
        for column, found in zip(columns, _digits(x[start : start + _CHUNK]), strict=True):
            column[start : start + _CHUNK] = found
    for column in columns:
        for start in range(0, x.size, _CHUNK):
            total.update(column[start : start + _CHUNK].astype("<i8").data)
    return total.hexdigest()


def _number(value: Any) -> str:
    """Shortest text of a number at 6 significant digits; integers, booleans and strings as they are."""
    if isinstance(value, float | np.floating):
        return f"{float(value) + 0.0:.{_DIGITS}g}"
    if isinstance(value, bytes):
        return repr(value.decode("utf-8", "backslashreplace"))
    return repr(value) if isinstance(value, str) else str(value).lower()


def tensor_text(tensor: onnx.TensorProto) -> str:
    """A constant by rule 3, with its dtype and shape."""
    kind = f"{_dtype(tensor.data_type)}[{','.join(map(str, tensor.dims))}]"
    array = tensor_array(tensor)
    if array.dtype.name == "bfloat16" or array.dtype.name.startswith("float8"):
        array = array.astype(np.float32)
    elif array.dtype.name.lstrip("u") in ("int4", "int2"):
        array = array.astype(np.int8)
    if array.size <= _WRITTEN_OUT:
        return f"{kind} {{{', '.join(_number(item) for item in array.reshape(-1).tolist())}}}"
    if array.dtype.kind == "f":
        return f"{kind} #{_rounded_digest(array)[:12]}"
    if array.dtype.kind in "OSU":
        content = "\0".join(map(str, array.reshape(-1).tolist())).encode()
    else:
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return f"{kind} #{hashlib.sha256(content).hexdigest()[:12]}"


def type_text(value: onnx.TypeProto, symbols: Container[str]) -> str:
    """A type by rule 4. symbols: dimensions that inputs declare."""
    kind = value.WhichOneof("value")
    if kind == "tensor_type":
        tensor = value.tensor_type
        if not tensor.elem_type:
            return "?"
        if not tensor.HasField("shape"):
            return f"{_dtype(tensor.elem_type)}[*]"
        dims = [
            str(dim.dim_value)
            if dim.HasField("dim_value")
            else dim.dim_param
            if dim.dim_param in symbols
            else "?"
            for dim in tensor.shape.dim
        ]
        return f"{_dtype(tensor.elem_type)}[{','.join(dims)}]"
    if kind in ("sequence_type", "optional_type"):
        return f"{kind.split('_')[0]}({type_text(getattr(value, kind).elem_type, symbols)})"
    return "?" if kind is None else kind


def attribute_text(attribute: onnx.AttributeProto, symbols: Container[str] = ()) -> str:
    """An attribute that is no graph, as `name=value`."""
    if attribute.ref_attr_name:
        return f"{attribute.name}=@{attribute.ref_attr_name}"
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"{attribute.name}={tensor_text(value)}"
    if isinstance(value, onnx.TypeProto):
        return f"{attribute.name}={type_text(value, symbols)}"
    if isinstance(value, float):
        return f"{attribute.name}={_number(np.float32(value))}"
    if isinstance(value, int | bytes):
        return f"{attribute.name}={_number(value)}"
    items = [np.float32(item) if isinstance(item, float) else item for item in value]
    written = [tensor_text(item) if isinstance(item, onnx.TensorProto) else _number(item) for item in items]
    return f"{attribute.name}=[{', '.join(written)}]"
