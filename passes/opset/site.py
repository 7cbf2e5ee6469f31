"""One node that is converted: what an adapter may ask about it, and the nodes that it may add around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from passes.graph.external_data import tensor_array

__all__ = ["Adapter", "Names", "RefusedError", "Scope", "Site"]


class RefusedError(Exception):
    """A node that cannot be converted; says why."""


class Names:
    """Names of nodes and values of a model, those of nested graphs and functions included."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def fresh(self, hint: str) -> str:
        """`hint`, or `hint_N`; taken from now on."""
        name, serial = hint, 0
        while name in self._taken:
            serial += 1
            name = f"{hint}_{serial}"
        self._taken.add(name)
        return name


@dataclass
class Scope:
    """What is known of the values in a graph, and through `parent` in the graphs around it.

    Attributes:
        types: by name of the value. constants: those that no caller can set, by name.
        read: names of the values of the whole model that somebody reads.
    """

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    parent: Scope | None = None

    def type_of(self, name: str) -> onnx.TypeProto.Tensor | None:
        """Type of a tensor; None where it is unknown, or not a tensor."""
        if name in self.types:
            kind = self.types[name]
            return kind.tensor_type if kind.WhichOneof("value") == "tensor_type" else None
        return self.parent.type_of(name) if self.parent else None

    def element(self, name: str) -> int | None:
        """Element type of a tensor; None where it is unknown."""
        tensor = self.type_of(name)
        return tensor.elem_type or None if tensor is not None else None

    def rank(self, name: str) -> int | None:
        """Rank of a tensor; None where it is unknown."""
        tensor = self.type_of(name)
        return len(tensor.shape.dim) if tensor is not None and tensor.HasField("shape") else None

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """Values of a constant; None where the tensor is computed or fed."""
        if name in self.constants:
            return tensor_array(self.constants[name])
        if name in self.types or self.parent is None:
            return None
        return self.parent.value(name)


@dataclass
class Site:
    """A node, edited in place, and the nodes that an adapter puts in front of it and behind it."""

    node: onnx.NodeProto
    scope: Scope
    names: Names
    before: list[onnx.NodeProto] = field(default_factory=list)
    after: list[onnx.NodeProto] = field(default_factory=list)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute. Raises RefusedError if it is a parameter of a function."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                if attribute.ref_attr_name:
                    raise RefusedError(f"its attribute '{name}' is a parameter of its function")
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def take(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, which is removed from the node."""
        value = self.attribute(name, default)
        for index, attribute in enumerate(self.node.attribute):
            if attribute.name == name:
                del self.node.attribute[index]
                break
        return value

    def set(self, name: str, value: Any) -> None:
        self.take(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def element(self) -> int:
        """Element type of the first input and output. Raises RefusedError if it is unknown."""
        element = self.scope.element(self.node.input[0]) or self.scope.element(self.node.output[0])
        if element is None:
            raise RefusedError(f"the type of its input '{self.node.input[0]}' is unknown")
        return element

    def output(self, index: int) -> str:
        """Name of an output that somebody reads; empty where nobody does."""
        name = self.node.output[index] if index < len(self.node.output) else ""
        return name if name in self.scope.read else ""

    def input(self, name: str, position: int) -> None:
        """Make `name` the input of that position; inputs before it that are left out stay empty."""
        missing = position + 1 - len(self.node.input)
        self.node.input.extend([""] * max(missing, 0))
        self.node.input[position] = name

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A new node in front of this one; the name of its output."""
        name = self.names.fresh(f"{self.node.name or self.node.op_type}_{op}")
        self.before.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, values: npt.ArrayLike, element: int) -> str:
        """A new constant of that element type; its name."""
        array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(element))
        name = self.names.fresh(f"{self.node.name or self.node.op_type}_Constant")
        tensor = numpy_helper.from_array(array, name)
        self.before.append(helper.make_node("Constant", [], [name], name, value=tensor))
        return name

    def behind(self, index: int, op: str, *inputs: str, **attributes: Any) -> None:
        """Put a node behind this one that computes the output of that index from what this node gives."""
        wanted = self.node.output[index]
        raw = self.names.fresh(f"{wanted}_before_{op}")
        self.node.output[index] = raw
        self.scope.read.add(raw)
        name = self.names.fresh(f"{self.node.name or self.node.op_type}_{op}")
        self.after.insert(0, helper.make_node(op, [raw, *inputs], [wanted], name, **attributes))


Adapter = Callable[[Site], None]
