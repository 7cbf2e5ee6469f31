"""What becomes of each layer, decided once: from the policy, the layer and what is asked of the file.

Insertion, rounding, sizes, the opset and the report read the plan; nobody decides again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.core.errors import PolicyError
from passes.formats import Form, Scheme, format_of
from passes.formats.sizes import pays
from passes.graph.editing import values_type
from passes.graph.layers import Layer, graph_layers, weight_index
from passes.policy import FLOAT, LayerPolicy, Policy

__all__ = ["LayerPlan", "Plan", "Target", "plan_layers"]


@dataclass(frozen=True)
class Target:
    """What is asked of a file beside its policy; the same for all its layers.

    standard: ONNX's own types only. fuses: pairs stand where ONNX Runtime fuses them, so that integer kernels
    read weights whose activations are integers, and biases are integers.
    """

    standard: bool = False
    fuses: bool = True

    def reads_codes(self, choice: LayerPolicy) -> bool:
        """Whether an integer kernel is to read the layer's weight."""
        return choice.activations.is_integer and (self.fuses or choice.activations.dynamic)

    def form(self, choice: LayerPolicy) -> Form | None:
        """How the layer's weight is stored; None where it stays float. Raises PolicyError where it cannot."""
        if choice.weights.is_float:
            return None
        return format_of(choice.weights).form(choice.weights, self.reads_codes(choice), self.standard)


@dataclass(frozen=True)
class LayerPlan:
    """One layer. choice: what the policy gives it, as far as its types allow. form: how its weight is stored,
    None where it stays float. dtype: the float type of the weight. shield: see `Form.shields`. integer_bias:
    whether its bias becomes int32 where its input's scale is known. why: the reason for float, if refused."""

    name: str
    choice: LayerPolicy
    form: Form | None = None
    dtype: Any = np.float32
    shield: bool = False
    integer_bias: bool = False
    why: str = ""

    @classmethod
    def of(
        cls, name: str, choice: LayerPolicy, target: Target, dtype: Any = np.float32, shield: bool = False
    ) -> LayerPlan:
        form = target.form(choice)
        bias = target.fuses and form is not None and form.row_scales(choice.weights)
        return cls(name, choice, form, np.dtype(dtype), shield, bias)

    @property
    def weights(self) -> Scheme:
        return self.choice.weights

    @property
    def half(self) -> bool:
        """Whether scales are float16 where that is exact enough."""
        return self.form is not None and self.form.half

    @property
    def opset(self) -> int:
        """The least opset that holds the layer's weight and activations."""
        weights = 0 if self.form is None else self.form.opset(self.choice.weights, self.dtype)
        held = self.choice.activations
        return max(weights, 0 if held.is_float else format_of(held).activation_opset(held))


@dataclass(frozen=True)
class Plan:
    """The plans of a network's layers by name. A layer that is not named stays float."""

    target: Target = field(default_factory=Target)
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy, target: Target | None = None) -> Plan:
        """The plan where nothing is known of the layers but their policy."""
        given = target or Target()
        return cls(given, {name: LayerPlan.of(name, policy[name], given) for name in policy})

    def __getitem__(self, name: str) -> LayerPlan:
        return self.layers.get(name) or LayerPlan(name, LayerPolicy())

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers.values())

    @property
    def policy(self) -> Policy:
        return Policy({name: plan.choice for name, plan in self.layers.items()})

    @property
    def opset(self) -> int:
        """The least opset that holds every layer."""
        return max((plan.opset for plan in self if not plan.choice.is_float), default=0)


def plan_layers(graph: gs.Graph, policy: Policy, target: Target, context: Context) -> Plan:
    """The plan for this graph: the policy without what the layers' types do not allow, each with a note.

    Raises PolicyError for a scheme that has no form in the file that is asked for.
    """
    plans = {name: _checked(name, policy[name], target) for name in policy}
    for layer, node, _ in graph_layers(graph):
        choice, index = policy[layer.name], weight_index(node)
        if choice.is_float or index is None:
            continue
        tensor = node.inputs[index]
        found = _planned(layer, index, choice, target, values_type(tensor), context)
        plans[layer.name] = found
        if found.why:
            context.note("refused", layer.name, found.why)
    plan = Plan(target, plans)
    for text in sorted(set(_widened(plan))):
        why = (
            "the integer kernels read no narrower type"
            if not target.standard
            else "ONNX has no narrower type"
        )
        context.note("info", "", f"{text} each: {why}")
    return plan


def _checked(name: str, choice: LayerPolicy, target: Target) -> LayerPlan:
    try:
        return LayerPlan.of(name, choice, target)
    except PolicyError as error:
        raise PolicyError(f"layer '{name}': {error}") from None


def _planned(
    layer: Layer, index: int, choice: LayerPolicy, target: Target, dtype: Any, context: Context
) -> LayerPlan:
    """One layer's plan; a note for activations that stay float."""
    floats = LayerPlan(layer.name, LayerPolicy())
    if dtype == np.float64:
        why = "its weights are float64, and ONNX has no scale of that type; stays float"
        return dataclasses.replace(floats, why=why)
    if dtype == np.float16 and not choice.activations.is_float:
        what = "float16: its weights are quantized, its activations stay float16"
        context.note("refused", layer.name, what)
        choice = dataclasses.replace(choice, activations=FLOAT)
    form, weights = target.form(choice), choice.weights
    reads = target.reads_codes(choice)
    if form is not None and not pays(
        layer, weights, itemsize=dtype.itemsize, integer_activations=reads, form=form
    ):
        why = f"its {layer.weights} weights would take more bytes as {weights}; stays float"
        return dataclasses.replace(floats, why=why)
    shield = form is not None and form.shields(layer.op, index, len(layer.weight_shape), weights)
    return LayerPlan.of(layer.name, choice, target, dtype, shield)


def _widened(plan: Plan) -> Iterable[str]:
    """What is stored in more bits than its scheme has."""
    for layer in plan:
        if layer.form is not None and layer.form.bits(layer.weights) != layer.weights.bits:
            yield f"{layer.weights.bits}-bit weights are stored in {layer.form.bits(layer.weights)} bits"
