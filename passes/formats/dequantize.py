"""Weights behind ONNX's own DequantizeLinear.

Containers: 2 bits INT2 (opset 25), 4 bits INT4 (opset 21), 3 and 5-8 bits INT8, 16 bits INT16.
Shielded weights get a Reshape behind the DequantizeLinear, which keeps ONNX Runtime (seen in 1.31) from
fusing it into a kernel that fails or computes nonsense: INT2 anywhere, and scales per channel of a MatMul
whose weight is on the left or has more than two axes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from passes.formats.encoded import EncodedWeight, channels_back, unsigned
from passes.formats.form import Form, Geometry
from passes.formats.scales import as_stored
from passes.formats.scheme import Scheme
from passes.graph.editing import add_constant, packed_constant, unique_name

__all__ = ["Dequantize", "container_bits"]

_PACKED = {
    (2, True): ("INT2", 25),
    (2, False): ("UINT2", 25),
    (4, True): ("INT4", 21),
    (4, False): ("UINT4", 21),
}


def container_bits(bits: int) -> int:
    """Bits that one stored code takes in the file: what ONNX has a type for."""
    return bits if bits in (2, 4) else 8 if bits <= 8 else 16


class Dequantize(Form):
    """An initializer of one of ONNX's integer types, scales and zero points, and DequantizeLinear."""

    name = "dequantize"
    standard = True
    half = False

    def __init__(self, gives: Literal["float", "codes"] = "codes") -> None:
        self.gives = gives

    def opset(self, scheme: Scheme, dtype: Any = np.float32) -> int:
        packed = _PACKED.get((scheme.bits, scheme.signed))
        if packed:
            return packed[1]
        if scheme.granularity == "block" or scheme.bits == 16:
            return 21
        # What gives float16 takes scales of that type.
        least = 13 if scheme.granularity == "channel" else 10
        return max(least, 19) if np.dtype(dtype) == np.float16 else least

    def bits(self, scheme: Scheme) -> int:
        return container_bits(scheme.bits)

    def stored_bytes(self, geometry: Geometry, scheme: Scheme, itemsize: int) -> int:
        container = container_bits(scheme.bits)
        scales = 1 if scheme.granularity == "tensor" else geometry.channels * geometry.groups
        return -(-geometry.weights * container // 8) + scales * itemsize + -(-scales * container // 8)

    def row_scales(self, scheme: Scheme) -> bool:
        return self.gives == "codes" and scheme.granularity != "block"

    def shields(self, op: str, index: int, rank: int, scheme: Scheme) -> bool:
        return op == "MatMul" and scheme.granularity == "channel" and (index == 0 or rank > 2)

    def shared(self, encoded: EncodedWeight, scheme: Scheme) -> EncodedWeight:
        # Schemes of 2 and 4 bits have int8 codes here, and types of their own in the file.
        return unsigned(encoded) if container_bits(scheme.bits) == 8 else encoded

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
        packed = _PACKED.get((scheme.bits, scheme.signed))

        def constant(suffix: str, codes: npt.NDArray[Any]) -> gs.Constant:
            if packed:
                return packed_constant(root, f"{hint}_{suffix}", codes, getattr(onnx.TensorProto, packed[0]))
            return add_constant(root, f"{hint}_{suffix}", codes)

        def emit(
            op: str,
            inputs: list[gs.Tensor],
            shape: tuple[int, ...],
            suffix: str,
            kind: Any = dtype,
            **attrs: Any,
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
