"""Inputs that are declared in odd ways: a batch of -1, scalars, sizes beyond memory; odd bit streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import helper, numpy_helper

from onnxq.data import input_specs, random_dataset
from onnxq.proof.feeds import made_up_feed
from passes.core.errors import DataError, InvalidModelError
from passes.decode import Decode
from passes.graph.model import Model
from passes.quantize import Quantize
from tests.nets import Net

Invoke = Callable[..., Result]
FLOAT = onnx.TensorProto.FLOAT


def conv(batch: Any) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", FLOAT, [batch, 8, 14, 14])],
        [numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scalar() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("Mul", ["h", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 6]), helper.make_tensor_value_info("k", FLOAT, [])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 4])],
        [numpy_helper.from_array(np.ones((6, 4), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("calibration", [("--data", "data.npz"), ("--random-calibration",)])
def test_a_batch_of_minus_1_is_free(calibration: tuple[str, ...], invoke: Invoke, work: Path) -> None:
    onnx.save(conv(-1), "m.onnx")
    (work / "data.npz").unlink()
    images = np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32)
    np.savez("data.npz", x=images)
    result = invoke("quantize", "m.onnx", *calibration, "-o", "q.onnx")
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession("q.onnx")
    assert session.run(None, {"x": images})[0].shape == (4, 8, 14, 14)


@pytest.mark.parametrize("size", [-1, 0, "N", None])
def test_free_dimensions(size: Any) -> None:
    spec = input_specs(conv(size))[0]
    assert spec.shape == (size if isinstance(size, str) else None, 3, 16, 16)


def test_random_numbers_for_a_scalar(invoke: Invoke, work: Path) -> None:
    onnx.save(scalar(), work / "m.onnx")
    result = invoke("quantize", "m.onnx", "--random-calibration", "-o", "q.onnx")
    assert result.exit_code == 0, result.output
    batch = next(random_dataset(input_specs(scalar()), 2, 0).batches(4))
    assert {name: array.shape for name, array in batch.inputs.items()} == {"x": (1, 6), "k": ()}


def test_sizes_beyond_memory() -> None:
    proto = conv(1)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**62
    assert made_up_feed(Model(proto)) is None
    with pytest.raises(DataError, match="too large"):
        random_dataset(input_specs(proto), 2, 0)


def packed(ir: int = 8) -> Model:
    """Five channels of five weights: rows of zeros are appended, so that a Slice follows the stream."""
    net = Net()
    net.input("x", ["N", 5, 6, 6])
    source = net.model(net.conv("x", 5, 5, 1, name="c"))
    proto = Quantize(weights="gse6", activations="float")(source).model.proto
    if ir < 4:
        proto.ir_version = ir
        proto.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in proto.graph.initializer
        )
    return Model(proto, "m.onnx")


def test_a_malformed_slice_behind_a_stream() -> None:
    model = packed()
    node = next(node for node in model.proto.graph.node if node.op_type == "Slice")
    begin = next(tensor for tensor in model.proto.graph.initializer if tensor.name == node.input[1])
    del begin.dims[:]
    with pytest.raises(InvalidModelError, match=r"Slice.*behind a bit stream is malformed"):
        Decode()(model)


def test_weights_that_ir_3_lists_as_inputs_leave_no_input_behind() -> None:
    decoded = Decode()(packed(ir=3)).model
    names = {tensor.name for tensor in decoded.proto.graph.initializer}
    assert [value.name for value in decoded.proto.graph.input if value.name not in names] == ["x"]


def test_a_stream_without_bits_is_still_described(invoke: Invoke, work: Path) -> None:
    model = packed()
    node = next(node for node in model.proto.graph.node if node.op_type == "GSEDequantizeLinear")
    node.attribute.remove(next(attribute for attribute in node.attribute if attribute.name == "bits"))
    onnx.save(model.proto, work / "m.onnx")
    result = invoke("info", "m.onnx")
    assert result.exit_code in (0, 2), result.output


def test_a_bias_of_another_length_is_left_alone(invoke: Invoke, work: Path) -> None:
    """The checker does not compare it with the weight; folding the BatchNormalization behind would."""
    model = onnx.load("tiny.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.ones(7, np.float32), "b1"))
    onnx.save(model, work / "m.onnx")
    result = invoke("fold", "m.onnx", "-o", "out.onnx", "--explain")
    assert result.exit_code in (0, 2), result.output
    assert "its bias of shape [7] does not fit 16 channels" in result.output


def test_a_tensor_that_outgrows_memory_is_not_tried(invoke: Invoke, work: Path) -> None:
    """ONNX Runtime cannot be stopped within an Upsample."""
    net = Net(opset=9)
    net.input("x", ["N", 3, 4, 4])
    net.conv("x", 3, 3, 1, name="c")
    net.add("Upsample", "c_out", net.constant(np.array([1, 1e8, 1, 1], np.float32)), name="up")
    onnx.save(net.model("up_out").proto, work / "m.onnx")
    result = invoke("fold", "m.onnx", "-o", "out.onnx")
    assert result.exit_code == 0, result.output
    assert "could not be tried" in result.output


@pytest.mark.parametrize("text", ["[", "9" * 5000, "[1]"])
def test_a_policy_in_the_metadata_that_is_none(text: str, invoke: Invoke, work: Path) -> None:
    model = Model(onnx.load("tiny.onnx")).with_metadata(policy=text)
    onnx.save(model.proto, work / "m.onnx")
    result = invoke("quantize", "m.onnx", "--activations", "float", "-o", "out.onnx")
    assert result.exit_code == 2, result.output
    assert "policy" in result.stderr
    assert invoke("info", "m.onnx").exit_code == 0
