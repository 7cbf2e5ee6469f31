"""Mutations of a model's structure and of its bytes, for fuzz_models.py."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
OPS = [
    "Relu",
    "Conv",
    "MatMul",
    "Gemm",
    "Identity",
    "Reshape",
    "Constant",
    "If",
    "Loop",
    "DequantizeLinear",
    "Add",
    "Mul",
    "BatchNormalization",
    "Transpose",
    "Cast",
    "Clip",
    "Pad",
    "Shape",
    "Gather",
    "Concat",
    "Slice",
    "Nope",
]


VALID: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("Identity", {}),
    ("Sigmoid", {}),
    ("Transpose", {}),
    ("Flatten", {}),
    ("Neg", {}),
    ("Shape", {}),
    ("Cast", {"to": 10}),
    ("Cast", {"to": 1}),
    ("Cast", {"to": 7}),
    ("Softmax", {}),
    ("HardSwish", {}),
    ("Exp", {}),
    ("ReduceMean", {}),
    ("ReduceMean", {"keepdims": 0}),
    ("LeakyRelu", {"alpha": -0.5}),
    ("Sqrt", {}),
    ("Log", {}),
    ("NonZero", {}),
    ("Size", {}),
    ("Split", {}),
    ("MaxPool", {"kernel_shape": [2, 2]}),
    ("ConstantOfShape", {}),
]


def graphs(model: onnx.ModelProto) -> list[Any]:
    """The main graph, nested ones, and function bodies."""
    found: list[Any] = [model.graph, *model.functions]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] * (attribute.type == onnx.AttributeProto.GRAPH)
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


def _drop_node(rng: random.Random, graph: Any) -> None:
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def _copy_node(rng: random.Random, graph: Any) -> None:
    node = _pick(rng, graph.node)
    if node is not None:
        copy = graph.node.add()
        copy.CopyFrom(node)
        if rng.random() < 0.5:
            for at in range(len(copy.output)):
                copy.output[at] += "_copy"


def _swap_nodes(rng: random.Random, graph: Any) -> None:
    if len(graph.node) > 1:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        rng.shuffle(nodes) if rng.random() < 0.3 else nodes.reverse()
        del graph.node[:]
        graph.node.extend(nodes)


def _rename(rng: random.Random, graph: Any) -> None:
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


def _rewire(rng: random.Random, graph: Any) -> None:
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


def _attribute(rng: random.Random, graph: Any) -> None:
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


def _tensor(rng: random.Random, graph: Any) -> None:
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


def _retype(rng: random.Random, graph: Any) -> None:
    """Another valid type for a tensor and its readers' types left alone."""
    tensor = _pick(rng, _tensors(graph))
    if tensor is None or tensor.data_type != FLOAT or not tensor.raw_data:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = numpy_helper.to_array(tensor).astype(rng.choice(["f2", "f8", "i4", "i8", "u1", "bool"]))
        except (ValueError, onnx.checker.ValidationError):  # an earlier mutation sent its data elsewhere
            return
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _value_info(rng: random.Random, graph: Any) -> None:
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


def _listing(rng: random.Random, graph: Any) -> None:
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


def _header(rng: random.Random, model: Any) -> None:
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


def _nest(rng: random.Random, graph: Any) -> None:
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


def _insert(rng: random.Random, graph: Any) -> None:
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


STRUCTURAL: list[Callable[[random.Random, Any], None]] = [
    _drop_node,
    _copy_node,
    _swap_nodes,
    _rename,
    _rewire,
    _rewire,
    _attribute,
    _attribute,
    _attribute,
    _tensor,
    _tensor,
    _tensor,
    _retype,
    _value_info,
    _value_info,
    _listing,
    _header,
    _nest,
    _insert,
    _insert,
    _insert,
]


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
            mutation(rng, model if mutation is _header else rng.choice(graphs(model)))
        done.append(mutation.__name__.strip("_"))
    return model.SerializeToString(), f"seed {at}, {' + '.join(done)}"
