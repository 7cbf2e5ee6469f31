"""What a policy's file will take, before any data is looked at: the file is made, plainly rounded.

Names, nodes and what layers share are bytes that no formula knows (a tenth of the file of a small network):
the same pass writes them. Only a trellis, whose search would take most of the time, stands there empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxq.allocation.problem import Problem
from onnxq.tuning.models import saved_bytes
from passes.core.base import Context
from passes.formats import format_of
from passes.formats.weights import EncodedWeight
from passes.graph.boundary import import_graph
from passes.graph.editing import values
from passes.graph.layers import graph_layers, weight_index
from passes.graph.model import Model, is_large
from passes.policy import Policy
from passes.quantize import Quantize

__all__ = ["file_bytes", "with_real_sizes"]


def file_bytes(model: Model, policy: Policy) -> int:
    """Bytes of `model` saved under `policy`: exact but for what values decide, such as shared tables."""
    context = Context(check=False, ranges=_any_range, encoded=_placeholders(model, policy))
    return saved_bytes(Quantize.of(policy)(model, context).model)


def with_real_sizes(problem: Problem, model: Model) -> Problem:
    """The problem with its uniform files weighed instead of predicted.

    A model of more than 2 GB keeps the prediction: there names are nothing, and files take minutes.
    """
    if is_large(model.proto):
        return problem
    policies = (problem.policy(problem.uniform(index)) for index in range(len(problem.choices)))
    return problem.with_uniform_sizes([file_bytes(model, policy) for policy in policies])


def _any_range(_: Model, tensors: Sequence[tuple[str, int]]) -> Mapping[str, tuple[float, float]]:
    return {name: (-1.0, 1.0) for name, _bits in tensors}


def _placeholders(model: Model, policy: Policy) -> dict[str, EncodedWeight]:
    """Weights that take the same bytes, of formats whose encoders are slow."""
    found: dict[str, EncodedWeight] = {}
    for layer, node, _ in graph_layers(import_graph(model)):
        scheme, index = policy[layer.name].weights, weight_index(node)
        if scheme.is_float or index is None:
            continue
        held = format_of(scheme).placeholder(values(node.inputs[index]), scheme, layer.channel_axis)
        if held is not None:
            found[layer.name] = held
    return found
