"""Models without the values of their weights, for tools that want types and shapes only.

onnx's checker, shape inference and version converter take a whole model as one message, of which protobuf
allows 2 GB. Here every tensor above `KEPT_BYTES` becomes a graph input of its type and shape. Those of nested
graphs and of Constant nodes become inputs of the main graph, under a name of their own where two branches
use the same one: names of the main graph are visible in the nested ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from passes.graph.external_data import KEPT_BYTES, is_external
from passes.graph.tensors import every_graph, stored_bytes

__all__ = [
    "Light",
    "attribute_graphs",
    "bare_copy",
    "constant_tensor",
    "flattened",
    "is_heavy",
    "without_values",
]


@dataclass(frozen=True)
class Light:
    """A model without its weights, and the weights by name.

    proto: may be changed. added: names of weights that were not declared as inputs of the model.
    """

    proto: onnx.ModelProto
    weights: dict[str, onnx.TensorProto]
    added: frozenset[str]

    def restore(self, proto: onnx.ModelProto) -> None:
        """Give `proto`, which is `self.proto` or made of it, its weights as initializers."""
        if proto.ir_version >= 4:  # before that, every initializer has to be among the inputs
            _delete(proto.graph.input, [i for i, v in enumerate(proto.graph.input) if v.name in self.added])
        proto.graph.initializer.extend(self.weights.values())


def is_heavy(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's values are left out of a light model."""
    return is_external(tensor) or stored_bytes(tensor) > KEPT_BYTES


def attribute_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in the node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The `value` of a Constant node, where it is a plain tensor."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def bare_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    copy = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _assign(copy, field.name, value)
    copy.graph.SetInParent()
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _assign(copy.graph, field.name, value)
    return copy


def _assign(target: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    held = getattr(target, name)
    if hasattr(held, "extend"):
        held.extend(value)
    elif hasattr(held, "CopyFrom"):
        held.CopyFrom(value)
    else:
        setattr(target, name, value)


class _Hoist:
    """Moves heavy tensors of nested graphs and of Constant nodes out of one model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.weights: dict[str, onnx.TensorProto] = {}
        self.defined: Counter[str] = Counter()
        for graph in every_graph(proto.graph):
            self.defined.update({value.name for value in (*graph.input, *graph.initializer)})
            self.defined.update(name for node in graph.node for name in node.output)

    def run(self, graph: onnx.GraphProto) -> None:
        """Empty `graph`, whose own initializers stay, and the graphs nested in it."""
        self._constants(graph)
        for node in graph.node:
            for nested in attribute_graphs(node):
                self._initializers(nested)
                self.run(nested)

    def _initializers(self, graph: onnx.GraphProto) -> None:
        found = [index for index, tensor in enumerate(graph.initializer) if is_heavy(tensor)]
        heavy = {graph.initializer[index].name: _copied(graph.initializer[index]) for index in found}
        _delete(graph.initializer, found)
        self._move(graph, heavy)

    def _constants(self, graph: onnx.GraphProto) -> None:
        heavy: dict[str, onnx.TensorProto] = {}
        found: list[int] = []
        for index, node in enumerate(graph.node):
            tensor = constant_tensor(node)
            if tensor is not None and is_heavy(tensor):
                found.append(index)
                heavy[node.output[0]] = _copied(tensor)
        _delete(graph.node, found)
        self._move(graph, heavy)

    def _move(self, graph: onnx.GraphProto, heavy: dict[str, onnx.TensorProto]) -> None:
        """Make tensors, which are no longer in `graph`, weights of the main graph."""
        outputs = {value.name for value in graph.output}
        for name, tensor in heavy.items():
            own = name if self.defined[name] == 1 and name not in outputs else self._fresh(name)
            tensor.name = own
            self.weights[own] = tensor
            if own != name:
                _rename(graph, name, own)
            if name in outputs:
                graph.node.add(op_type="Identity", input=[own], output=[name])
        declared = [i for i, value in enumerate(graph.value_info) if value.name in heavy]
        _delete(graph.value_info, declared)

    def _fresh(self, name: str) -> str:
        serial = 1
        while self.defined[f"{name}_{serial}"]:
            serial += 1
        self.defined[f"{name}_{serial}"] += 1
        return f"{name}_{serial}"


def _copied(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _delete(field: Any, indices: list[int]) -> None:
    for index in reversed(indices):
        del field[index]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Make the nodes of a graph, and of those nested in it that do not redefine `old`, read `new`."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for nested in attribute_graphs(node):
            defined = {value.name for value in (*nested.input, *nested.initializer)}
            defined.update(name for inner in nested.node for name in inner.output)
            if old not in defined:
                _rename(nested, old, new)


def without_values(proto: onnx.ModelProto) -> Light:
    """The model with graph inputs in place of weights. `proto` itself is not changed."""
    light, weights = bare_copy(proto), dict[str, onnx.TensorProto]()
    for tensor in proto.graph.initializer:
        if is_heavy(tensor):
            weights[tensor.name] = tensor
        else:
            light.graph.initializer.append(tensor)
    hoist = _Hoist(proto)
    hoist.run(light.graph)
    weights |= hoist.weights
    declared = {value.name for value in light.graph.input}
    added = frozenset(weights) - declared
    for name, tensor in weights.items():
        if name in added:
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    return Light(light, weights, added)


def flattened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every heavy tensor as an initializer of the main graph; `proto` itself if it is so."""
    if not any(is_heavy(tensor) for tensor in _inner_tensors(proto.graph)):
        return proto
    light = without_values(proto)
    light.restore(light.proto)
    return light.proto


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            yield tensor
        for nested in attribute_graphs(node):
            yield from nested.initializer
            yield from _inner_tensors(nested)
