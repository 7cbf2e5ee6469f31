"""A model made ready for training, in ONNX still: the bridge reads it, and trained weights are written into
it.

1. Functions of the file are inlined; Constant nodes become initializers.
2. Each float initializer has one reader. Exporters store equal tensors once (through Identity, or plainly),
   and freshly made layers are full of equal tensors: trained as one, they would be another network.
3. alpha of a Gemm goes into its weight and beta into its bias, as `quantize` would do later.

The network is the same function as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from passes.core.errors import UnsupportedModelError
from passes.graph.boundary import node_name
from passes.graph.external_data import tensor_array
from passes.graph.model import Model, every_graph

__all__ = ["prepare"]

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def prepare(model: Model) -> Model:
    """The model of the module's docstring. Raises UnsupportedModelError for subgraphs and half precision."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if any(node.domain not in ("", "ai.onnx") for node in proto.graph.node) and proto.functions:
        proto = inliner.inline_local_functions(proto)
    for nested in list(every_graph(proto.graph))[1:]:
        raise UnsupportedModelError(
            f"{model.name}: has a subgraph ('{nested.name}'), which cannot be trained; export it without "
            "If and Loop"
        )
    for tensor in proto.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            raise UnsupportedModelError(
                f"{model.name}: weight '{tensor.name}' is float16, and training starts from float32; "
                "export it so"
            )
    graph = proto.graph
    _name_nodes(graph)
    names = _names(graph)
    _constants(graph, model.name)
    _copies(graph)
    _unshare(graph, names)
    _fold_factors(graph)
    return model.with_proto(proto)


def _names(graph: onnx.GraphProto) -> set[str]:
    values = {name for node in graph.node for name in (*node.input, *node.output)}
    return values | {tensor.name for tensor in graph.initializer}


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names as passes/graph/boundary.py gives them, before nodes go, so that policies of the original fit."""
    given, seen = {node.name for node in graph.node if node.name}, set[str]()
    for index, node in enumerate(graph.node):
        node.name = node_name(node.name, f"{node.op_type}_{index}", given, seen)
        seen.add(node.name)


def _keep(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _constants(graph: onnx.GraphProto, name: str) -> None:
    rest: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            rest.append(node)
            continue
        attribute = node.attribute[0]
        value: Any = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.SparseTensorProto):
            raise UnsupportedModelError(
                f"{name}: node '{node.name}' is a sparse constant; make it a dense one"
            )
        if not isinstance(value, onnx.TensorProto):
            kinds = {"value_float": np.float32, "value_floats": np.float32}
            value = numpy_helper.from_array(np.asarray(value, kinds.get(attribute.name, np.int64)))
        value.name = node.output[0]
        graph.initializer.append(value)
    _keep(graph, rest)


def _copies(graph: onnx.GraphProto) -> None:
    """Identity of an initializer becomes an initializer."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    rest: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in held and node.output[0] not in outputs:
            copy = graph.initializer.add()
            copy.CopyFrom(held[node.input[0]])
            copy.name = node.output[0]
            held[copy.name] = copy
        else:
            rest.append(node)
    _keep(graph, rest)


def _unshare(graph: onnx.GraphProto, names: set[str]) -> None:
    held = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in _FLOATS}
    read: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name not in held:
                continue
            if name in read:
                serial = 1
                while f"{name}_{serial}" in names:
                    serial += 1
                copy = graph.initializer.add()
                copy.CopyFrom(held[name])
                copy.name = node.input[index] = f"{name}_{serial}"
                names.add(copy.name)
            read.add(name)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    inputs = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used or tensor.name in inputs]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _fold_factors(graph: onnx.GraphProto) -> None:
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm":
            continue
        for index, name in ((1, "alpha"), (2, "beta")):
            found = [attribute for attribute in node.attribute if attribute.name == name]
            tensor = held.get(node.input[index]) if index < len(node.input) else None
            if found and found[0].f != 1.0 and tensor is not None:
                array = tensor_array(tensor)
                scaled = (array * np.float64(found[0].f)).astype(array.dtype)
                tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
                found[0].f = 1.0
