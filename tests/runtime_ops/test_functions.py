"""The ONNX functions: what ONNX Runtime and the reference evaluator make of them is the numpy reference, bit
for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime_ops.bitpack import pack_bits
from runtime_ops.functions import (
    DOMAIN,
    GSE_OP,
    LEAST_OPSET,
    PACKED_OP,
    SIMULATED_OP,
    TCQ_OP,
    affine_tables,
    function,
    gse_tables,
    padded_rows,
    tcq_tables,
)
from runtime_ops.gse import Encoder, decode_affine, encode_gse, quantize_groups
from runtime_ops.trellis import TCQ_BITS, chain_bytes, decode_tcq, tcq_levels

Array = npt.NDArray[Any]
SHAPES = [(8, 16, 1, 1), (16, 1, 3, 3), (32, 1, 5, 5), (10, 64), (10, 45), (16, 3, 3, 3)]


def both(
    op: str, inputs: Mapping[str, Array], dims: tuple[int, ...], opset: int, **attrs: Any
) -> list[Array]:
    """What stock ONNX Runtime and the reference evaluator give for one node; the model is checked in full."""
    held = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in inputs.items()]
    nodes = [
        helper.make_node(op, list(inputs), ["w"], domain=DOMAIN, **attrs),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, dims)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [], [output], held),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
        functions=[function(op, opset)],
    )
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    reference: Any = ReferenceEvaluator(model)
    return [session.run(None, {})[0], reference.run(None, {})[0]]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [5, 8, 16, 32, 64])
def test_weights(bits: int, size: int) -> None:
    rng = np.random.default_rng(bits)
    opset = (LEAST_OPSET, 17, 21)[bits % 3]
    for shape in SHAPES:
        row_size = math.prod(shape[1:])
        dims = (padded_rows(shape[0], row_size, size), *shape[1:])
        gse = encode_gse(rng.standard_normal((dims[0], row_size)), bits, size)
        streams = {"packed": pack_bits(gse.mantissas, bits), "exponents": pack_bits(gse.codes, 5)}
        inputs = {**streams, **gse_tables(bits, size, gse.exponent_base, dims)}
        attrs = {"bits": bits, "group_size": size, "shape": dims}
        for found in both(GSE_OP, inputs, dims, opset, exponent_base=gse.exponent_base, **attrs):
            np.testing.assert_array_equal(found, gse.decoded().reshape(dims))
        groups = (dims[0], -(-row_size // size))
        scale = rng.uniform(0.01, 1, groups).astype(np.float16)
        zero = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), groups).astype(np.int8)
        inputs = {"packed": streams["packed"], "scale": scale, "zero_point": zero}
        wanted = decode_affine(streams["packed"], scale, zero, bits, size, dims)
        for found in both(PACKED_OP, {**inputs, **affine_tables(bits, size, dims)}, dims, opset, **attrs):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bits", TCQ_BITS)
def test_trellises(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for shape in SHAPES:
        packed = rng.integers(0, 256, chain_bytes(math.prod(shape), bits)).astype(np.uint8).reshape(-1, bits)
        scale = rng.uniform(-1, 1, shape[0]).astype(np.float16)
        wanted = decode_tcq(packed, scale, tcq_levels(), bits, shape)
        inputs: dict[str, Array] = {"packed": packed, "scale": scale, **tcq_tables(bits, shape)}
        opset = (LEAST_OPSET, 17, 21)[bits % 3]
        for found in both(TCQ_OP, inputs, shape, opset, bits=bits, shape=shape):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("encoder", ["nearest", "paper"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("opset", [LEAST_OPSET, 21])
def test_activations(bits: int, encoder: Encoder, opset: int) -> None:
    """Every magnitude that float32 has, groups of zeros and denormals among them."""
    rng = np.random.default_rng(bits)
    for shape, axis in (((2, 20, 3, 3), 1), ((3, 20), -1), ((2, 5, 40), -1)):
        x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-140, 120, shape)).astype(np.float32)
        x[..., 0] = 0
        x[0, :4] = 2.0 ** rng.integers(-126, 120)  # exact powers, where Log is tempted to miss
        rows = [0, 0, -1] if axis == 1 else [-1, shape[-1], 1]
        for size in (4, 8, 32):
            attrs = {"bits": bits, "group_size": size, "rows": rows, "truncate": int(encoder == "paper")}
            for found in both(SIMULATED_OP, {"x": x}, shape, opset, **attrs):
                np.testing.assert_array_equal(found, quantize_groups(x, bits, size, axis, encoder))


def test_units_of_eight() -> None:
    for rows in range(1, 20):
        for row_size in range(1, 40):
            for size in (1, 5, 8, 32):
                padded, groups = padded_rows(rows, row_size, size), -(-row_size // size)
                assert rows <= padded < rows + 8
                assert padded * row_size % 8 == 0
                assert padded * groups % 8 == 0
    assert padded_rows(1000, 1280, 32) == 1000


def test_opset_is_refused_below_the_least() -> None:
    with pytest.raises(ValueError, match=f"need opset {LEAST_OPSET}, not 13"):
        function(GSE_OP, 13)
