"""Turn selected layers to float in a policy.

As a pass it marks the layers in the model's metadata (`onnxq.exclude`), which a following
`quantize` obeys; in Python, `exclude(policy, model, selectors)` gives the policy itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from passes.core.base import Context, Pass, register
from passes.graph.boundary import import_graph
from passes.graph.jsontext import stored_texts
from passes.graph.model import Model
from passes.graph.select import select, select_layers
from passes.policy import Policy

__all__ = ["EXCLUDE_KEY", "Exclude", "exclude"]

EXCLUDE_KEY = "onnxq.exclude"


def exclude(policy: Policy, model: Model, selectors: Iterable[str]) -> Policy:
    """The policy with the selected layers float. Raises SelectorError for one that matches nothing."""
    return policy.exclude(layer.name for layer in select_layers(model, selectors))


@register
@dataclass(frozen=True)
class Exclude(Pass):
    """Mark layers, so that the `quantize` behind it in a recipe leaves them float."""

    layers: tuple[str, ...]
    name: ClassVar[str] = "exclude"
    keeps_function: ClassVar[bool] = True

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        chosen = [layer.name for layer in select(import_graph(model), self.layers)]
        held = stored_texts(model, EXCLUDE_KEY, list)
        merged = [*held, *(name for name in chosen if name not in held)]
        for name in chosen:
            context.note("applied", name, "excluded: stays float")
        if merged == held:
            return model, False
        return model.with_metadata(exclude=json.dumps(merged)), True
