"""Mutated models through the command line: exit code 0, or one sentence and 2; no crash, no hang, no file left.

Seeds are small models of every kind (fuzz_seeds below, and models/resnet20.onnx). Each mutant has one to four
mutations of its structure (nodes, tensors, attributes, types, dimensions, opsets, names) or of its bytes. It goes
through four commands in a forked worker; a worker that crashes or hangs is replaced and the mutant is reported.

python benchmarks/fuzz_models.py [--count 20000] [--seed 0] [--jobs 2] [--only I]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing as mp
import multiprocessing.connection
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 20
WEIGHTS = ["int8", "int4", "gse6", "tcq3", "int3", "uint8:asym", "int5:block32", "int16", "int2"]
FLOAT = TensorProto.FLOAT
ODD = [0, 1, 2, 3, 7, -1, -2, 63, 2**16, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63)]
NAMES = [
    "",
    "x",
    "y",
    "w",
    "\x1b[31mred",
    "a\nb",
    "a\x00b",
    "\u202egnp",
    "a" * 3000,
    "../../etc",
    "a/b\\c",
    "%s{0}",
    "[bold]",
]
TEXTS = [
    "nearest",
    "linear",
    "SAME_UPPER",
    "NOTSET",
    "VALID",
    "constant",
    "\x1b]0;t\x07",
    "",
    "ai.onnx",
    "com.microsoft",
]
OPS = ["Relu", "Conv", "MatMul", "Gemm", "Identity", "Reshape", "Constant", "If", "Loop", "DequantizeLinear", "Add", "Mul",
       "BatchNormalization", "Transpose", "Cast", "Clip", "Pad", "Shape", "Gather", "Concat", "Slice", "Nope"]  # fmt: skip


VALID: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}), ("Identity", {}), ("Sigmoid", {}), ("Transpose", {}), ("Flatten", {}), ("Neg", {}), ("Shape", {}),
    ("Cast", {"to": 10}), ("Cast", {"to": 1}), ("Cast", {"to": 7}), ("Softmax", {}), ("HardSwish", {}), ("Exp", {}),
    ("ReduceMean", {}), ("ReduceMean", {"keepdims": 0}), ("LeakyRelu", {"alpha": -0.5}), ("Sqrt", {}), ("Log", {}),
    ("NonZero", {}), ("Size", {}), ("Split", {}), ("MaxPool", {"kernel_shape": [2, 2]}), ("ConstantOfShape", {}),
]  # fmt: skip


# --- seeds


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
    weights = {"w0": f(4, 3, 3, 3), "s": f(4), "b": f(4), "m": f(4), "v": abs(f(4)) + 1, "w1": f(4, 1, 3, 3), "b1": f(4),
               "w2": f(5, 4), "b2": f(5), "lo": np.float32(0), "hi": np.float32(6)}  # fmt: skip
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
    weights = {"w": rng.normal(size=(6, 8)).astype(np.float32), "b": np.ones(8, np.float32), "zero": np.array(0),
               "axes": np.array([0]), "v": rng.normal(size=(2, 3)).astype(np.float32)}  # fmt: skip
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
        [helper.make_node("Identity", ["cond_in"], ["cond_out"]), helper.make_node("MatMul", ["h_in", "w"], ["h_out"], "ml")],
        "body",
        [_value("i", [], TensorProto.INT64), _value("cond_in", [], TensorProto.BOOL), _value("h_in", ["N", 6])],
        [_value("cond_out", [], TensorProto.BOOL), _value("h_out", ["N", 6])],
    )  # fmt: skip
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
    weights = {"w": rng.normal(size=(6, 6)).astype(np.float32), "trips": np.array(2), "true": np.array(True),
               "start": np.zeros(6, np.float32)}  # fmt: skip
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
    weights = {"w": rng.normal(size=(6, 6)).astype(np.float32), "v": rng.normal(size=(6, 6)).astype(np.float32),
               "u": rng.normal(size=(3, 6)).astype(np.float32)}  # fmt: skip
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
    weights = {"table": rng.normal(size=(9, 6)).astype(np.float32), "w": rng.normal(size=(6, 4)).astype(np.float32),
               "scale": np.float32(2), "factors": np.array([1, 2, 1], np.float32)}  # fmt: skip
    inputs = [_value("ids", ["N", 3], TensorProto.INT64), _value("scale", [])]
    return _model(nodes, inputs, [_value("y", ["N", 6, 4])], weights, opset=9, ir=4)


def _quantized(weights: str, activations: str) -> onnx.ModelProto:
    from onnxq.data import input_specs, random_dataset
    from onnxq.public import range_provider
    from passes.base import Context
    from passes.model import Model
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


# --- mutations


def graphs(model: onnx.ModelProto) -> list[Any]:
    """The main graph, nested ones, and function bodies."""
    found: list[Any] = [model.graph, *model.functions]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    found.append(attribute.g)
    return found


def _pick(rng: random.Random, items: Any) -> Any:
    items = list(items)
    return items[rng.randrange(len(items))] if items else None


def _tensors(graph: Any) -> list[onnx.TensorProto]:
    held = list(getattr(graph, "initializer", ()))
    held += [a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    return held


def _values(graph: Any) -> list[onnx.ValueInfoProto]:
    if isinstance(graph, onnx.FunctionProto):
        return list(graph.value_info)
    return [*graph.input, *graph.output, *graph.value_info]


def _names(graph: Any) -> list[str]:
    return [name for node in graph.node for name in (*node.input, *node.output)] or ["x"]


def _drop_node(rng: random.Random, model: Any, graph: Any) -> None:
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def _copy_node(rng: random.Random, model: Any, graph: Any) -> None:
    node = _pick(rng, graph.node)
    if node is not None:
        copy = graph.node.add()
        copy.CopyFrom(node)
        if rng.random() < 0.5:
            for at in range(len(copy.output)):
                copy.output[at] += "_copy"


def _swap_nodes(rng: random.Random, model: Any, graph: Any) -> None:
    if len(graph.node) > 1:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        rng.shuffle(nodes) if rng.random() < 0.3 else nodes.reverse()
        del graph.node[:]
        graph.node.extend(nodes)


def _rename(rng: random.Random, model: Any, graph: Any) -> None:
    node = _pick(rng, graph.node)
    if node is None:
        return
    what = rng.randrange(4)
    if what == 0:
        node.name = rng.choice(NAMES)
    elif what == 1:
        node.op_type = rng.choice([*OPS, *NAMES])
    elif what == 2:
        node.domain = rng.choice(["", "ai.onnx", "ai.onnxq", "com.microsoft", "mine", "\x1bnope"])
    else:
        _rename_everywhere(graph, rng.choice(_names(graph)), rng.choice(NAMES))


def _rename_everywhere(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            for at, name in enumerate(field):
                if name == old:
                    field[at] = new
    for value in (*_values(graph), *getattr(graph, "initializer", ())):
        if value.name == old:
            value.name = new


def _rewire(rng: random.Random, model: Any, graph: Any) -> None:
    node = _pick(rng, graph.node)
    if node is None:
        return
    field = node.input if rng.random() < 0.7 else node.output
    choice = rng.random()
    if choice < 0.5 and field:
        field[rng.randrange(len(field))] = rng.choice([*_names(graph), *_names(graph), *NAMES])
    elif choice < 0.65 and field:
        del field[rng.randrange(len(field))]
    elif choice < 0.8:
        field.append(rng.choice(_names(graph)))
    elif node.output:
        node.input.append(node.output[0])


def _attribute(rng: random.Random, model: Any, graph: Any) -> None:
    node = _pick(rng, graph.node)
    if node is None:
        return
    attribute = _pick(rng, node.attribute)
    if attribute is None or rng.random() < 0.15:
        name = rng.choice(
            [
                "axis",
                "pads",
                "group",
                "perm",
                "value",
                "to",
                "body",
                "shape",
                "bits",
                "kernel_shape",
                "strides",
            ]
        )
        node.attribute.append(
            helper.make_attribute(name, rng.choice([1, [1, 2], 0.5, "text", [0, 0, 0, 0], -1]))
        )
        return
    what = rng.randrange(6)
    if what == 0:
        node.attribute.remove(attribute)
    elif what == 1:
        attribute.name = rng.choice([*NAMES, "axis", "perm"])
    elif what == 2:
        attribute.type = rng.randrange(15)
    elif what == 3:
        node.attribute.append(attribute)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(ODD)
    elif attribute.type == onnx.AttributeProto.INTS:
        if attribute.ints and rng.random() < 0.7:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(ODD)
        else:
            attribute.ints.append(rng.choice(ODD)) if rng.random() < 0.5 else attribute.ClearField("ints")
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-40])
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice([*TEXTS, *NAMES]).encode() if rng.random() < 0.8 else b"\xff\xfe"


def _tensor(rng: random.Random, model: Any, graph: Any) -> None:
    tensor = _pick(rng, _tensors(graph))
    if tensor is None:
        return
    what = rng.randrange(8)
    if what == 0:
        tensor.data_type = rng.randrange(30)
    elif what == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD)
    elif what == 2:
        tensor.dims.append(rng.choice(ODD)) if rng.random() < 0.5 else tensor.ClearField("dims")
    elif what == 3:
        data = tensor.raw_data
        tensor.raw_data = rng.choice([b"", data[:-1], data + b"\0", data * 2, data[: len(data) // 2]])
    elif what == 4:
        tensor.name = rng.choice([*NAMES, *_names(graph)])
    elif what == 5 and tensor.HasField("raw_data") and len(tensor.raw_data) >= 4:
        data = bytearray(tensor.raw_data)
        at = rng.randrange(0, len(data) - 3) // 4 * 4
        bad = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38, 1e-42, 0.0, 1e8])
        data[at : at + 4] = np.float32(bad).tobytes()
        tensor.raw_data = bytes(data)
    elif what == 6:
        tensor.data_location = rng.choice([TensorProto.EXTERNAL, TensorProto.DEFAULT])
        for entry in tensor.external_data:
            entry.value = rng.choice(
                ["-1", "999999", "abc", "../../etc/passwd", "/etc/passwd", "", "0", "9" * 5000]
            )
        if rng.random() < 0.5:
            tensor.external_data.add(
                key=rng.choice(["location", "offset", "length", "x"]), value=rng.choice(NAMES)
            )
    elif what == 7 and tensor.data_type == FLOAT and tensor.dims:
        size = rng.choice([0, 1, 2, 5])  # a valid tensor of another size
        dims = list(tensor.dims)
        dims[rng.randrange(len(dims))] = size
        if np.prod(dims) < 1e5:
            tensor.CopyFrom(numpy_helper.from_array(np.ones(dims, np.float32), tensor.name))


def _retype(rng: random.Random, model: Any, graph: Any) -> None:
    """Another valid type for a tensor and its readers' types left alone."""
    tensor = _pick(rng, _tensors(graph))
    if tensor is None or tensor.data_type != FLOAT or not tensor.raw_data:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = numpy_helper.to_array(tensor).astype(rng.choice(["f2", "f8", "i4", "i8", "u1", "bool"]))
        except ValueError:
            return
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _value_info(rng: random.Random, model: Any, graph: Any) -> None:
    value = _pick(rng, _values(graph))
    if value is None:
        return
    kind = value.type.tensor_type
    what = rng.randrange(9)
    if what == 0:
        kind.elem_type = rng.randrange(28)
    elif what == 1 and kind.shape.dim:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_value = rng.choice(ODD)
    elif what == 2 and kind.shape.dim:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_param = rng.choice(NAMES)
    elif what == 3:
        kind.ClearField("shape")
    elif what == 4:
        value.ClearField("type")
    elif what == 5:
        value.name = rng.choice([*NAMES, *_names(graph)])
    elif what == 6 and kind.shape.dim:
        del kind.shape.dim[rng.randrange(len(kind.shape.dim))]
    elif what == 7:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        kind.shape.dim.add(dim_value=rng.choice(ODD))


def _listing(rng: random.Random, model: Any, graph: Any) -> None:
    """Drop, repeat or move an entry of a graph's lists."""
    fields = ["input", "output", "initializer", "value_info"]
    field = (
        getattr(graph, rng.choice(fields), None) if not isinstance(graph, onnx.FunctionProto) else graph.input
    )
    if not field:
        return
    at = rng.randrange(len(field))
    if rng.random() < 0.5:
        del field[at]
    elif isinstance(field[at], str):
        field.append(field[at])
    else:
        field.add().CopyFrom(field[at])


def _header(rng: random.Random, model: Any, graph: Any) -> None:
    what = rng.randrange(8)
    if what == 0 and model.opset_import:
        model.opset_import[0].version = rng.choice(
            [0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 18, 21, 24, 27, 28, 99, -1, 2**62]
        )
    elif what == 1:
        model.opset_import.add(
            domain=rng.choice(["", "ai.onnx", "ai.onnxq", "x\x1b"]), version=rng.choice([1, 17, 13])
        )
    elif what == 2:
        model.ir_version = rng.choice([0, 1, 3, 4, 7, 10, 13, 14, 99, -1, 2**62])
    elif what == 3:
        key = rng.choice(["onnxq.policy", "onnxq.smooth", "onnxq.exclude", "onnxq.config", "\x1bkey"])
        text = rng.choice(
            [
                "",
                "{}",
                "[]",
                "[1]",
                '{"a": 1}',
                "[" * 100_000,
                "9" * 5000,
                "{",
                '{"layers": {"a": 3}}',
                "null",
            ]
        )
        model.metadata_props.add(key=key, value=text)
    elif what == 4:
        del model.opset_import[:]
    elif what == 5:
        model.graph.name = rng.choice(NAMES)
    elif what == 6 and model.functions:
        del model.functions[rng.randrange(len(model.functions))]
    elif model.functions:
        function = _pick(rng, model.functions)
        function.node.add(op_type=function.name, domain=function.domain, input=function.input, output=["rec"])


def _nest(rng: random.Random, model: Any, graph: Any) -> None:
    """Put the graph, or a copy of a node, into a branch of an If of itself."""
    if isinstance(graph, onnx.FunctionProto) or not graph.node:
        return
    inner = onnx.GraphProto()
    inner.CopyFrom(graph)
    if rng.random() < 0.5:
        del inner.input[:]
    if len(inner.SerializeToString()) > 50_000:
        return
    outputs = (
        [f"{value.name}_if" for value in inner.output]
        if rng.random() < 0.7
        else [v.name for v in inner.output]
    )
    node = helper.make_node(
        "If", [rng.choice(_names(graph))], outputs, "nested", then_branch=inner, else_branch=inner
    )
    graph.node.append(node)


def _insert(rng: random.Random, model: Any, graph: Any) -> None:
    """A node that is probably valid between a tensor and all of its readers."""
    node = _pick(rng, graph.node)
    if node is None or not node.output:
        return
    name = node.output[0]
    op, attributes = rng.choice(VALID)
    for reader in graph.node:
        for at, read in enumerate(reader.input):
            if read == name:
                reader.input[at] = f"{name}_in"
    made = helper.make_node(op, [name], [f"{name}_in"], rng.choice(["", f"made_{name}"]), **attributes)
    place = list(graph.node).index(node) + 1
    nodes = [*graph.node[:place], made, *graph.node[place:]]
    copies = [onnx.NodeProto.FromString(entry.SerializeToString()) for entry in nodes]
    del graph.node[:]
    graph.node.extend(copies)


STRUCTURAL: list[Callable[[random.Random, Any, Any], None]] = [
    _drop_node, _copy_node, _swap_nodes, _rename, _rewire, _rewire, _attribute, _attribute, _attribute, _tensor, _tensor,
    _tensor, _retype, _value_info, _value_info, _listing, _header, _nest, _insert, _insert, _insert,
]  # fmt: skip


def _byte_level(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not changed:
            break
        # Where the graph's structure is, not in the weights of a large model.
        at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(400, len(changed)))
        what = rng.randrange(5)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at] = rng.randrange(256)
        elif what == 2:
            del changed[at : at + rng.choice([1, 2, 8])]
        elif what == 3:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 8])))
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutant(number: int, seed: int, pool: list[bytes]) -> tuple[bytes, str]:
    """The bytes of mutant `number` and how it was made; the same for the same seed."""
    rng = random.Random(f"{seed}/{number}")
    at = rng.randrange(len(pool))
    data = pool[at]
    if rng.random() < 0.2:
        return _byte_level(rng, data), f"seed {at}, bytes"
    model = onnx.ModelProto.FromString(data)
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        mutation = rng.choice(STRUCTURAL)
        with contextlib.suppress(ValueError, UnicodeError, OverflowError):
            mutation(rng, model, rng.choice(graphs(model)))
        done.append(mutation.__name__.strip("_"))
    return model.SerializeToString(), f"seed {at}, {' + '.join(done)}"


# --- running


def commands(number: int, packed: bool = False) -> list[list[str]]:
    weights = WEIGHTS[number % len(WEIGHTS)]
    last = (
        ["--activations", "dynamic"] if number % 2 else ["--random-calibration", "--calibration-samples", "2"]
    )
    threads = ["--threads", "1"]
    return [
        ["info", "m.onnx"],
        ["decode" if packed else "fold", "m.onnx", "-o", "out.onnx"],
        ["quantize", "m.onnx", "--weights", weights, "--activations", "float", *threads, "-o", "out.onnx"],
        ["quantize", "m.onnx", *last, *threads, "-o", "out.onnx"],
    ]


def _place(error: BaseException) -> str:
    """The exception under an 'unexpected' one, and the innermost line of ours that it passed."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if str(ROOT) in f.filename and "fuzz_models" not in f.filename]
    where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"
    text = re.sub(r"0x[0-9a-f]+|\d+", "#", str(error).splitlines()[0] if str(error) else "")[:80]
    return f"{type(error).__name__} at {where}: {text!r}"


def run_command(arguments: list[str]) -> tuple[int, str]:
    """(exit code, what went wrong) of one command in this process."""
    import click

    from onnxq.cli.app import cli

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(args=arguments, prog_name="onnxq", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code, ""
    except click.ClickException as error:
        text = error.format_message()
        problem = _place(error) if error.exit_code == 1 else ""
        if not problem and (re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", text) or not text.strip()):
            problem = f"control characters in the sentence {text[:80]!r}"
        return (1 if problem else error.exit_code), problem
    except Exception as error:  # what escapes the command line is what is looked for
        return 1, "escaped: " + _place(error)
    shown = out.getvalue() + err.getvalue()
    if re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]",
        re.sub(r"\x1b\[\d*m", "", shown) if "red" not in shown else shown,
    ):
        return 1, "control characters in the output"
    return 0, ""


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def work(task: Any, answer: Any, options: argparse.Namespace, pool: list[bytes]) -> None:
    """A worker: takes numbers of mutants, gives what happened to each command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as name:
        folder = Path(name)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        (folder / "tmp").mkdir()
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        while True:
            number = task.recv()
            if number is None:
                return
            data, made = mutant(number, options.seed, pool)
            Path("m.onnx").write_bytes(data)
            Path("weights.bin").write_bytes(np.ones(200, np.float32).tobytes())
            usual = _files(folder)
            for arguments in commands(number, options.packed):
                answer.send(("begin", number, arguments, made))
                code, problem = run_command(arguments)
                left = _files(folder) - usual - ({"out.onnx"} if code == 0 else set())
                if left:
                    code, problem = code, problem or f"left behind: {sorted(left)[0]}"
                answer.send(("end", code, problem, bool(left)))
                for file in _files(folder) - usual:
                    with contextlib.suppress(OSError):
                        (folder / file).unlink()
            answer.send(("done", number, None, made))


class Worker:
    """A forked process and the pipes to it."""

    def __init__(self, options: argparse.Namespace, pool: list[bytes]) -> None:
        context = mp.get_context("fork")
        self.task, theirs = context.Pipe()
        self.answer, mine = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(theirs, mine, options, pool), daemon=True)
        self.process.start()
        theirs.close()
        mine.close()
        self.now: Any = None
        self.since = time.monotonic()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first mutant.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="Replay one mutant in this process, with tracebacks.")
    parser.add_argument(
        "--packed", action="store_true", help="Only seeds with bit streams, and decode for fold."
    )
    parser.add_argument("--keep", help="Folder for the mutants that failed.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    pool = [model.SerializeToString() for model in seeds()]
    if options.packed:
        pool = [data for data in pool if b"DequantizeLinear" in data and b"ai.onnxq" in data]
    if options.only is not None:
        replay(options, pool)
        return
    outcome = campaign(options, pool)
    raise SystemExit(1 if outcome else 0)


def replay(options: argparse.Namespace, pool: list[bytes]) -> None:
    from onnxq.cli.app import cli

    number = options.only
    data, made = mutant(number, options.seed, pool)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        Path("m.onnx").write_bytes(data)
        Path("weights.bin").write_bytes(np.ones(200, np.float32).tobytes())
        print(f"mutant {number}: {made}, {len(data)} bytes")
        for arguments in commands(number, options.packed):
            print("$ onnxq", *arguments)
            try:
                cli.main(args=["--debug", *arguments], prog_name="onnxq")
            except SystemExit as ended:
                print("exit code", ended.code)
            except Exception:  # noqa: BLE001 - shown, which is the purpose
                traceback.print_exc()


def campaign(options: argparse.Namespace, pool: list[bytes]) -> int:
    """Run all mutants; prints the table and returns the number of failures."""
    for module in (
        "onnxq.cli.quantize",
        "onnxq.cli.rewrite",
        "onnxq.cli.inspect",
        "onnxq.evaluation",
        "onnxq.rounding",
    ):
        __import__(module)
    numbers: Iterator[int] = iter(range(options.first, options.first + options.count))
    codes: Counter[tuple[str, int]] = Counter()
    problems: dict[str, list[int]] = defaultdict(list)
    left = 0
    start = time.perf_counter()
    workers = [Worker(options, pool) for _ in range(options.jobs)]
    busy = 0

    def give(worker: Worker) -> bool:
        number = next(numbers, None)
        worker.task.send(number)
        worker.since = time.monotonic()
        return number is not None

    active = [worker for worker in workers if give(worker)]
    while active:
        ready = mp.connection.wait([w.answer for w in active], timeout=1)
        for at, worker in enumerate(list(active)):
            failed = ""
            if worker.answer in ready:
                try:
                    kind, a, b, c = worker.answer.recv()
                except EOFError:
                    worker.process.join()
                    failed = f"crashed with {worker.process.exitcode}"
                else:
                    if kind == "begin":
                        worker.now, worker.since = (a, b, c), time.monotonic()
                    elif kind == "end":
                        codes[worker.now[1][0], a] += 1
                        left += c
                        if a not in (0, 2) or b:
                            problems[b or f"exit code {a}"].append(worker.now[0])
                    elif not give(worker):
                        active.remove(worker)
                        worker.process.join()
            elif time.monotonic() - worker.since > LIMIT_S:
                failed = f"hung over {LIMIT_S} s"
            if failed:
                worker.kill()
                number, arguments, _ = worker.now
                problems[f"{failed}: {arguments[0]}"].append(number)
                codes[arguments[0], -1] += 1
                fresh = Worker(options, pool)
                active[active.index(worker)] = fresh
                if not give(fresh):
                    active.remove(fresh)
        busy += 1
    seconds = time.perf_counter() - start
    print(
        f"{options.count} mutants x 4 commands in {seconds:.0f} s ({options.count / seconds:.0f} a second), seed {options.seed}"
    )
    for name in ("info", "fold", "decode", "quantize"):
        print(
            f"  {name:<9}",
            {code: count for (command, code), count in sorted(codes.items()) if command == name},
        )
    print(
        f"  {left} commands left files behind; {sum(map(len, problems.values()))} failures of {len(problems)} kinds"
    )
    for text, found in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(f"  {len(found):>5}  {text}   (mutants {', '.join(map(str, found[:4]))})")
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
        for text, found in problems.items():
            Path(options.keep, f"{found[0]}.onnx").write_bytes(mutant(found[0], options.seed, pool)[0])
    return sum(map(len, problems.values()))


if __name__ == "__main__":
    main()
