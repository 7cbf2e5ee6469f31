"""The Python kernels agree with the file's own functions and with the C++ kernels, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_ops.bitpack import pack_bits
from runtime_ops.functions import DOMAIN, GSE_OP, PACKED_OP, affine_tables, function, gse_tables, padded_rows
from runtime_ops.gse import decode_affine, decode_gse
from runtime_ops.library import register
from runtime_ops.python_op import register_python

ROWS, ROW_SIZE, SIZE = 16, 27, 8
SHAPE = (ROWS, 3, 3, 3)


def model(op: str, bits: int, with_function: bool) -> tuple[onnx.ModelProto, Any]:
    """One node with all its inputs, and what it must give."""
    rng = np.random.default_rng(bits)
    assert padded_rows(ROWS, ROW_SIZE, SIZE) == ROWS
    groups = -(-ROW_SIZE // SIZE)
    packed = pack_bits(rng.integers(0, 256, (ROWS, ROW_SIZE)), bits)
    attributes: dict[str, Any] = {"bits": bits, "group_size": SIZE}
    if op == GSE_OP:
        codes = pack_bits(rng.integers(0, 32, (ROWS, groups)), 5)
        attributes["exponent_base"] = -37
        inputs = {"packed": packed, "exponents": codes, **gse_tables(bits, SIZE, -37, SHAPE)}
        wished = decode_gse(packed, codes, bits, SIZE, -37, SHAPE)
    else:
        scale = rng.normal(size=(ROWS, groups)).astype(np.float16)
        zero_point = rng.integers(-8, 8, (ROWS, groups)).astype(np.int8)
        tables = affine_tables(bits, SIZE, SHAPE)
        inputs = {"packed": packed, "scale": scale, "zero_point": zero_point, **tables}
        wished = decode_affine(packed, scale, zero_point, bits, SIZE, SHAPE)
    node = helper.make_node(op, list(inputs), ["y"], name="node", domain=DOMAIN, shape=SHAPE, **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    functions = [function(op, 17)] if with_function else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions), wished


def run(built: onnx.ModelProto, options: ort.SessionOptions) -> Any:
    session = ort.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_python_kernel_agrees_with_the_function(bits: int) -> None:
    built, wished = model(GSE_OP, bits, with_function=True)
    np.testing.assert_array_equal(run(built, ort.SessionOptions()), wished)
    options = ort.SessionOptions()
    register_python(options)
    bare, _ = model(GSE_OP, bits, with_function=False)
    np.testing.assert_array_equal(run(bare, options), wished)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("op", [GSE_OP, PACKED_OP])
def test_the_cpp_kernel_takes_the_node_of_the_function(op: str, bits: int) -> None:
    built, wished = model(op, bits, with_function=True)
    options = ort.SessionOptions()
    register(options)
    np.testing.assert_array_equal(run(built, options), wished)


def test_malformed_input_of_the_python_kernel_is_nan_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The extension would end the process at an exception."""
    built, _ = model(GSE_OP, 5, with_function=False)
    next(a for a in built.graph.node[0].attribute if a.name == "bits").i = 9
    del built.graph.output[0].type.tensor_type.shape.dim[:]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    register_python(options)
    assert np.isnan(run(built, options)).all()
    assert "GSE has 2 to 8 bits, not 9" in caplog.text
