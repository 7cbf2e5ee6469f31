"""The table of operators: ONNX op type -> a function of (call, inputs...) that gives a tensor or several.

`call` has the node's attributes, the opset, and whether the network is training. Inputs are tensors, None
where the node leaves one out. Shapes, axes and bounds (`listed`) come as lists of numbers; they may depend on
shapes and constants alone (onnxq/training/network.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

__all__ = ["OPS", "Call", "Listed", "Operator", "Optional", "Tensor", "register"]

Tensor: TypeAlias = torch.Tensor
Optional: TypeAlias = torch.Tensor | None
Listed: TypeAlias = list[Any] | None


@dataclass(frozen=True)
class Call:
    """One use of an operator. attrs: by name, strings decoded. outputs: how many the node names."""

    attrs: dict[str, Any]
    opset: int
    outputs: int = 1
    training: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)


@dataclass(frozen=True)
class Operator:
    """function: (call, inputs...). listed: the inputs that it gets as lists of numbers: shapes, axes,
    bounds."""

    function: Callable[..., Any]
    listed: tuple[int, ...] = ()


OPS: dict[str, Operator] = {}
F = TypeVar("F", bound=Callable[..., Any])


def register(*names: str, listed: tuple[int, ...] = ()) -> Callable[[F], F]:
    """Decorator: the function computes the operators of these names."""

    def add(function: F) -> F:
        for name in names:
            if name in OPS:
                raise ValueError(f"operator {name} is registered twice")
            OPS[name] = Operator(function, listed)
        return function

    return add
