"""Weights for the sensitivity engine that were rounded on data, each layer by itself.

What a layer costs in a scheme is then what it costs after `quantize{rounding=gptq}` (or the bias correction
of `rounding=bias`) has done its best on that layer alone: second-order rounding on the moments of the
layer's float input, and the means in the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from onnxq.rounding import DataRounder
from onnxq.rounding.store import Store
from passes.core.base import Context
from passes.formats import format_of
from passes.graph.boundary import import_graph
from passes.graph.layers import Layer, graph_layers
from passes.graph.model import Model
from passes.placement.plan import Plan
from passes.policy import LayerPolicy, Policy, Scheme
from passes.rounding.task import RoundingTask
from passes.rounding.tasks import rounding_tasks

__all__ = ["RoundedWeights"]

Array = npt.NDArray[Any]
_BUDGET = 2**28


class RoundedWeights:
    """Rounds what it is asked for, several layers and schemes in one walk over the data, and keeps it.

    rounding: gptq or bias. Weights beyond 256 MB lie in temporary files.
    """

    def __init__(self, model: Model, rounder: DataRounder, rounding: str) -> None:
        self.model, self.rounder, self.rounding = model, rounder, rounding
        self._store = Store(_BUDGET)
        self._known: dict[tuple[str, Scheme], bool] = {}

    def prepare(self, wanted: Iterable[tuple[str, Scheme]]) -> None:
        """Make sure that these layers are rounded in these schemes. Raises DataError for unusable data."""
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self._known and not pair[1].is_float]
        # What data-aware rounding leaves to plain rounding (passes/rounding/tasks.py) stays False.
        self._known.update(dict.fromkeys(missing, False))
        for task, found in self.rounder.alone(self.model, self._tasks(missing)):
            key = (task.layer.name, task.scheme)
            dtype = task.array.dtype
            self._store.put(str(key), 0, found.encoded.decoded.astype(dtype))
            if found.bias is not None:
                self._store.put(str(key), 1, found.bias.astype(dtype))
            self._known[key] = found.bias is not None

    def get(self, layer: Layer, scheme: Scheme) -> tuple[Array, Array | None] | None:
        """(weight with a Gemm's alpha in it, bias or None); None where the layer is rounded plainly."""
        key = (layer.name, scheme)
        self.prepare([key])
        if not self._store.holds(str(key)):
            return None
        return self._store.get(str(key), 0), self._store.get(str(key), 1) if self._known[key] else None

    def _tasks(self, wanted: Sequence[tuple[str, Scheme]]) -> list[list[RoundingTask]]:
        """By layer in graph order, a task for each of its schemes."""
        schemes: dict[str, list[Scheme]] = {}
        for name, scheme in wanted:
            if format_of(scheme).plain_only(scheme) is None:
                schemes.setdefault(name, []).append(scheme)
        graph = import_graph(self.model)
        plan = Plan.of(Policy({name: LayerPolicy(found[0]) for name, found in schemes.items()}))
        first = rounding_tasks(
            graph,
            graph_layers(graph),
            plan,
            {},
            context=Context(check=False),
            method="bias" if self.rounding == "bias" else "gptq",
        )
        return [
            [
                replace(task, scheme=scheme, half=format_of(scheme).form(scheme).half)
                for scheme in schemes[task.layer.name]
            ]
            for task in first
        ]
