"""The one search space: layers x choices, with what each costs in quality, bytes and bit operations.

An assignment is one choice index per layer, int [L]. All tables are [L, K].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.allocation.resources import CostModel, Resource
from onnxq.sensitivity.variants import choice_text
from passes.core.errors import UserError
from passes.formats.sizes import layer_bytes
from passes.graph.layers import Layer
from passes.policy import LayerPolicy, Policy

__all__ = ["Assignment", "Problem"]

Assignment = npt.NDArray[np.int64]
Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """layers: names in graph order. choices: the same for every layer, by weight bits times activation bits.

    cost: predicted damage (logit MSE) [L, K]. bytes: of the weight in the file [L, K]. bops: bit operations
    per sample [L, K]. rest: bytes of the file that no choice changes. correlation: of neighbours' errors [L -
    1]; 0 where it was not measured. extra: other resources by name, such as latency on a device.
    """

    layers: tuple[str, ...]
    choices: tuple[LayerPolicy, ...]
    cost: Table
    bytes: Table
    bops: Table
    rest: int = 0
    correlation: Table = field(default_factory=lambda: np.zeros(0))
    extra: Mapping[str, Resource] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        choices: Sequence[LayerPolicy],
        sensitivity: Callable[[str, LayerPolicy], float],
        *,
        file_bytes: int,
        macs: Mapping[str, int],
    ) -> Problem:
        """file_bytes: of the float file, from which the layers' float weights are taken off."""
        ladder = sorted(choices, key=lambda c: (c.bit_product, c.weights.bits))
        size = [
            [layer_bytes(layer, c.weights, integer_activations=c.activations.is_integer) for c in ladder]
            for layer in layers
        ]
        cost = [[0.0 if c.is_float else sensitivity(layer.name, c) for c in ladder] for layer in layers]
        bops = [[float(macs.get(layer.name, 0)) * c.bit_product for c in ladder] for layer in layers]
        rest = file_bytes - sum(4 * layer.weights for layer in layers)
        return cls(
            tuple(layer.name for layer in layers),
            tuple(ladder),
            np.array(cost, np.float64),
            np.array(size, np.float64),
            np.array(bops, np.float64),
            max(rest, 0),
        )

    @property
    def count(self) -> int:
        return len(self.layers)

    def size(self, assignment: Assignment) -> int:
        """Bytes of the file, predicted."""
        return int(self.bytes[np.arange(self.count), assignment].sum()) + self.rest

    def damage(self, assignment: Assignment) -> float:
        """Predicted logit MSE: the sum of the layers', and of neighbours' interaction where it is known."""
        own = self.cost[np.arange(self.count), assignment]
        total = float(own.sum())
        if self.correlation.size:
            total += float((2 * self.correlation * np.sqrt(own[:-1] * own[1:])).sum())
        return total

    def operations(self, assignment: Assignment) -> int:
        """Bit operations of one sample."""
        return int(self.bops[np.arange(self.count), assignment].sum())

    @property
    def resources(self) -> dict[str, Resource]:
        """Everything that can be limited, by name: bytes, bops, and what cost models brought."""
        size, operations = Resource(self.bytes, self.rest, "bytes"), Resource(self.bops, 0.0, "BOPs")
        return {"bytes": size, "bops": operations, **self.extra}

    def with_costs(self, model: CostModel) -> Problem:
        """The search space with one more resource. Raises UserError where it lacks a layer or choice."""
        table = [[model(layer, choice) for choice in self.choices] for layer in self.layers]
        resource = Resource(np.array(table, np.float64), model.rest, model.unit)
        return replace(self, extra={**self.extra, model.name: resource})

    def within(self, assignment: Assignment, limits: Mapping[str, float]) -> bool:
        """Whether an assignment keeps all limits (name -> most)."""
        held = self.resources
        return all(held[name].of(assignment) <= most * (1 + 1e-9) for name, most in limits.items())

    def with_uniform_sizes(self, sizes: Sequence[int]) -> Problem:
        """The problem corrected by what the files take in which every layer has the same choice, [K] bytes.

        What was predicted wrongly (names, nodes) is spread evenly over the layers.
        """
        missing = [size - self.size(self.uniform(index)) for index, size in enumerate(sizes)]
        return replace(self, bytes=self.bytes + np.array(missing, np.float64) / max(self.count, 1))

    def policy(self, assignment: Assignment) -> Policy:
        return Policy({name: self.choices[int(k)] for name, k in zip(self.layers, assignment, strict=True)})

    def assignment(self, policy: Policy) -> Assignment:
        """The inverse of `policy`. Raises UserError for a choice that is not in this space."""
        index = {choice_text(choice): position for position, choice in enumerate(self.choices)}
        found = []
        for name in self.layers:
            text = choice_text(policy[name])
            if text not in index:
                raise UserError(f"layer '{name}': {text} is none of the choices {', '.join(index)}")
            found.append(index[text])
        return np.array(found, np.int64)

    def uniform(self, position: int) -> Assignment:
        return np.full(self.count, position, np.int64)

    @property
    def finest(self) -> int:
        """Index of the finest choice that is not float."""
        kept = [index for index, choice in enumerate(self.choices) if not choice.is_float]
        return kept[-1] if kept else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "choices": [choice.to_json() for choice in self.choices],
            "cost": self.cost.tolist(),
            "bytes": self.bytes.tolist(),
            "bops": self.bops.tolist(),
            "rest": self.rest,
            "correlation": self.correlation.tolist(),
            "extra": {name: resource.to_json() for name, resource in self.extra.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Problem:
        """Raises UserError for what is no problem."""
        try:
            cost, size, bops = (np.array(document[name], np.float64) for name in ("cost", "bytes", "bops"))
            found = cls(
                tuple(document["layers"]),
                tuple(LayerPolicy.from_json(choice) for choice in document["choices"]),
                cost,
                size,
                bops,
                int(document["rest"]),
                np.array(document.get("correlation", ()), np.float64),
                {name: Resource.from_json(held) for name, held in document.get("extra", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"is not a table of sensitivities: {error}") from None
        tables = (cost, size, bops, *(resource.table for resource in found.extra.values()))
        if any(table.shape != (len(found.layers), len(found.choices)) for table in tables):
            raise UserError("is not a table of sensitivities: its tables are not layers x choices")
        return found
