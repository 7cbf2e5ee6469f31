"""Small models of every kind, from which fuzz_models.py makes its mutants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
FLOAT = TensorProto.FLOAT


def _value(name: str, shape: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: Any, inputs: Any, outputs: Any, weights: dict[str, Any], opset: int = 17, **more: Any
) -> onnx.ModelProto:
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held, value_info=more.pop("value_info", []))
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=more.pop("ir", 8), **more)


def _conv_bn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c0", "s", "b", "m", "v"], ["n0"], "bn"),
        helper.make_node("Relu", ["n0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "dw", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c1", "lo", "hi"], ["k"], "clip"),
        helper.make_node("Add", ["k", "r0"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], "fc", transB=1),
    ]
    weights = {
        "w0": f(4, 3, 3, 3),
        "s": f(4),
        "b": f(4),
        "m": f(4),
        "v": abs(f(4)) + 1,
        "w1": f(4, 1, 3, 3),
        "b1": f(4),
        "w2": f(5, 4),
        "b2": f(5),
        "lo": np.float32(0),
        "hi": np.float32(6),
    }
    inner = [_value("r0", ["N", 4, 8, 8]), _value("f", ["N", 4])]
    return _model(nodes, [_value("x", ["N", 3, 8, 8])], [_value("y", ["N", 5])], weights, value_info=inner)


def _matmul() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Add", ["m", "b"], ["a"], "bias"),
        helper.make_node("Shape", ["a"], ["sh"], "shape"),
        helper.make_node("Gather", ["sh", "zero"], ["n"], "gather", axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"], "unsq"),
        helper.make_node("Constant", [], ["rest"], "const", value=numpy_helper.from_array(np.array([2, 4]))),
        helper.make_node("Concat", ["n1", "rest"], ["target"], "cat", axis=0),
        helper.make_node("Reshape", ["a", "target"], ["r"], "reshape"),
        helper.make_node("Transpose", ["r"], ["t"], "tr", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "v"], ["y"], "mm2"),
    ]
    weights = {
        "w": rng.normal(size=(6, 8)).astype(np.float32),
        "b": np.ones(8, np.float32),
        "zero": np.array(0),
        "axes": np.array([0]),
        "v": rng.normal(size=(2, 3)).astype(np.float32),
    }
    return _model(nodes, [_value("x", ["N", 6])], [_value("y", ["N", 4, 3])], weights)


def _branches() -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    w = numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), "wi")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h", "wi"], ["t"], "mt")], "then", [], [_value("t", ["N", 6])], [w]
    )
    other = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["e"], "re")], "else", [], [_value("e", ["N", 6])]
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("MatMul", ["h_in", "w"], ["h_out"], "ml"),
        ],
        "body",
        [
            _value("i", [], TensorProto.INT64),
            _value("cond_in", [], TensorProto.BOOL),
            _value("h_in", ["N", 6]),
        ],
        [_value("cond_out", [], TensorProto.BOOL), _value("h_out", ["N", 6])],
    )
    scan = helper.make_graph(
        [
            helper.make_node("Add", ["s_in", "row"], ["s_out"]),
            helper.make_node("Identity", ["s_out"], ["step"]),
        ],
        "scan",
        [_value("s_in", [6]), _value("row", [6])],
        [_value("s_out", [6]), _value("step", [6])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "m0"),
        helper.make_node("If", ["c"], ["q"], "if", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "true", "q"], ["l"], "loop", body=body),
        helper.make_node("Scan", ["start", "l"], ["end", "y"], "scan", body=scan, num_scan_inputs=1),
    ]
    weights = {
        "w": rng.normal(size=(6, 6)).astype(np.float32),
        "trips": np.array(2),
        "true": np.array(True),
        "start": np.zeros(6, np.float32),
    }
    inputs = [_value("x", ["N", 6]), _value("c", [], TensorProto.BOOL)]
    return _model(nodes, inputs, [_value("y", ["N", 6]), _value("end", [6])], weights)


def _function() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    inner = [helper.make_node("MatMul", ["a", "b"], ["m"], "inner"), helper.make_node("Relu", ["m"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    body = helper.make_function("mine", "Dense", ["a", "b"], ["c"], inner, opsets)
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["h"], "d0", domain="mine"),
        helper.make_node("Dense", ["h", "v"], ["g"], "d1", domain="mine"),
        helper.make_node("Gemm", ["g", "u"], ["y"], "fc", alpha=0.5, transB=1),
    ]
    weights = {
        "w": rng.normal(size=(6, 6)).astype(np.float32),
        "v": rng.normal(size=(6, 6)).astype(np.float32),
        "u": rng.normal(size=(3, 6)).astype(np.float32),
    }
    more = {"opsets": [helper.make_opsetid("mine", 1)], "functions": [body]}
    return _model(nodes, [_value("x", ["N", 6])], [_value("y", ["N", 3])], weights, **more)


def _odd_types() -> onnx.ModelProto:
    """Several inputs, an integer one, an overridable default, float16 and string tensors, an old opset."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "w"], ["m"], "mm"),
        helper.make_node("Mul", ["m", "scale"], ["z"], "mul"),
        helper.make_node("Dropout", ["z"], ["d"], "drop"),
        helper.make_node("Upsample", ["d", "factors"], ["y"], "up"),
    ]
    weights = {
        "table": rng.normal(size=(9, 6)).astype(np.float32),
        "w": rng.normal(size=(6, 4)).astype(np.float32),
        "scale": np.float32(2),
        "factors": np.array([1, 2, 1], np.float32),
    }
    inputs = [_value("ids", ["N", 3], TensorProto.INT64), _value("scale", [])]
    return _model(nodes, inputs, [_value("y", ["N", 6, 4])], weights, opset=9, ir=4)


def _quantized(weights: str, activations: str) -> onnx.ModelProto:
    from onnxq.data import input_specs, random_dataset
    from onnxq.public import range_provider
    from passes.core.base import Context
    from passes.graph.model import Model
    from passes.quantize import Quantize

    source = Model(_conv_bn())
    ranges = range_provider(random_dataset(input_specs(source.proto), 4, 0), "minmax", 1)
    return Quantize(weights=weights, activations=activations)(source, Context(ranges=ranges)).model.proto


def seeds() -> list[onnx.ModelProto]:
    made = [_conv_bn(), _conv_bn(), _matmul(), _matmul(), _branches(), _branches(), _function(), _odd_types()]
    made += [_quantized("int8", "uint8"), _quantized("gse6", "float"), _quantized("tcq3", "float")]
    made += [_quantized("int3", "float")]
    external = _matmul()
    for tensor in external.graph.initializer:
        if tensor.name in ("w", "v"):
            tensor.data_location = TensorProto.EXTERNAL
            size, offset = len(tensor.raw_data), 0 if tensor.name == "w" else 192
            tensor.ClearField("raw_data")
            for key, value in (("location", "weights.bin"), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
    # Models of the repository cost many times as much, and are drawn seldom.
    return [*[*made, external] * 4, onnx.load(ROOT / "models" / "resnet20.onnx")]
