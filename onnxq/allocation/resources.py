"""What a choice costs besides bytes and bit operations: latency on a device, energy, what adds up by layer.

A cost model says what layer l costs in choice k; the search space holds its numbers as a table [L, K], and
the integer program keeps sums of it below limits. `LayerCosts` is such a model as a file, written by whoever
has measured or fitted it:

    {"name": "latency", "unit": "ms", "rest": 0.8,
     "layers": {"stem": {"gse4": 0.11, "int8:channel/uint8:asym": 0.04, "float": 0.1}, ...}}

A choice is written as in the sensitivities (`choice_text`). rest: what no choice changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxq.sensitivity.variants import choice_text
from passes.core.errors import UserError
from passes.graph.jsontext import read_json
from passes.policy import LayerPolicy

__all__ = ["CostModel", "LayerCosts", "Resource", "parse_limits", "read_costs"]

_RESERVED = ("bops", "bytes", "metric")


class CostModel(Protocol):
    """Costs of one resource: `model(layer's name, choice)` in `unit`, and `rest` that no choice changes."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def rest(self) -> float: ...
    def __call__(self, layer: str, choice: LayerPolicy) -> float: ...


@dataclass(frozen=True)
class LayerCosts:
    """A cost model as a table. layers: layer's name -> choice_text -> cost in `unit`."""

    name: str
    layers: Mapping[str, Mapping[str, float]]
    unit: str = ""
    rest: float = 0.0

    def __call__(self, layer: str, choice: LayerPolicy) -> float:
        """Raises UserError where the table does not know the layer or the choice."""
        text = choice_text(choice)
        held = self.layers.get(layer)
        if held is None:
            raise UserError(f"costs of {self.name}: layer '{layer}' is not in the table")
        if text not in held:
            known = ", ".join(sorted(held))
            raise UserError(f"costs of {self.name}: layer '{layer}' has no cost for {text}; it has {known}")
        return float(held[text])

    def to_json(self) -> dict[str, Any]:
        layers = {layer: dict(entry) for layer, entry in self.layers.items()}
        return {"name": self.name, "unit": self.unit, "rest": self.rest, "layers": layers}


def read_costs(path: str | Path) -> LayerCosts:
    """A table of costs from a file. Raises UserError naming the file and what is wrong in it."""
    file = Path(path)
    document = read_json(file, "the table of costs")
    if not isinstance(document, dict) or not isinstance(document.get("layers"), dict):
        raise UserError(
            f"{file}: is no table of costs; it must be "
            '{"name": NAME, "layers": {LAYER: {SCHEME: COST}}}'
        )
    name = document.get("name")
    if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
        raise UserError(f"{file}: 'name' must be a word other than {', '.join(_RESERVED)}, not {name!r}")
    layers: dict[str, dict[str, float]] = {}
    for layer, entry in document["layers"].items():
        if not isinstance(entry, dict) or not all(_is_cost(cost) for cost in entry.values()):
            raise UserError(f"{file}: layer '{layer}': expected {{SCHEME: COST}} with numbers of 0 or more")
        layers[layer] = {str(text): float(cost) for text, cost in entry.items()}
    rest = document.get("rest", 0.0)
    if not _is_cost(rest):
        raise UserError(f"{file}: 'rest' must be a number of 0 or more, not {rest!r}")
    return LayerCosts(name, layers, str(document.get("unit", "")), float(rest))


def _is_cost(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )


@dataclass(frozen=True)
class Resource:
    """Costs of every layer and choice, table [L, K] in `unit`, and what no choice changes."""

    table: npt.NDArray[np.float64]
    rest: float = 0.0
    unit: str = ""

    def of(self, assignment: npt.NDArray[np.int64]) -> float:
        """What an assignment, int [L], costs in all."""
        return float(self.table[np.arange(len(self.table)), assignment].sum()) + self.rest

    @property
    def least(self) -> float:
        """What the cheapest assignment costs."""
        return float(self.table.min(axis=1).sum()) + self.rest

    def to_json(self) -> dict[str, Any]:
        return {"table": self.table.tolist(), "rest": self.rest, "unit": self.unit}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Resource:
        return cls(np.array(document["table"], np.float64), float(document["rest"]), str(document["unit"]))


def parse_limits(texts: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Limits from `latency=3.5` and the like. Raises UserError for one that is not among `known`."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = (part.strip() for part in text.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not value > 0:
            raise UserError(f"`limits` {text}: is NAME=NUMBER with a number above 0, as in latency=3.5")
        if name not in known:
            there = ", ".join(known) or "none; `costs` brings them"
            raise UserError(f"`limits` {text}: there is no resource '{name}'; there is {there}")
        found[name] = value
    return found
