"""The policy made real: integer schemes as QuantizeLinear and DequantizeLinear, GSE as nodes of its own.

1. Weights become what their format stores (passes/formats/): integer initializers behind DequantizeLinear,
   or bit streams where ONNX has no type for them; `standard` keeps to ONNX's types. The plan of a layer
   decides it (passes/placement/plan.py).
2. Activations get Q/DQ pairs where ONNX Runtime fuses them (passes/placement/places.py, and activations.py
   there).
3. Biases of layers with quantized weights and activations become int32 (passes/placement/biases.py).
4. Layers with dynamic activations go to passes/placement/dynamic.py; layers in subgraphs get weights only.
5. float64 layers stay float: ONNX has no scale of that type. float16 layers get weights only, since ONNX
   Runtime has no integer kernel that gives float16.
6. GSE activations are simulated: what a layer reads goes through GSEQuantizeDequantize first, in float
   (passes/placement/simulated.py).
7. What is quantized already stays as it is: a layer whose weight comes from DequantizeLinear is not a layer
   any more, and a tensor that has a Q/DQ pair keeps that one.

8. placement=inputs quantizes what layers read and nothing else, as papers on quantization-aware training do:
   nothing fuses, so that weights keep their bit streams and biases stay float.

9. rounding=gptq, adaround, brecq or bias: weights and biases come from the rounder that the application
   lends (passes/rounding/task.py), which has seen data; layers that it cannot treat are rounded plainly, with
   a note.

10. Layers that the policy smooths are smoothed first (passes/smooth.py), unless they are already.

11. Functions of the model that hold layers are inlined first (passes/inline_functions.py).

12. A policy that asks for layers to be quantized, none of which can be, is an error with the reasons: a model
   that is quantized already, weights of types without a scale. A policy that wants every layer float is not
   an error, nor is a second run of the same pass.

A weight read by several layers is encoded once for all that have the same scheme
(passes/placement/sharing.py). A layer whose weights would take more bytes than floats stays float
(passes/formats/sizes.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs

from passes.core.base import Context, Pass, register
from passes.core.errors import PolicyError, UnsupportedModelError
from passes.exclude import EXCLUDE_KEY
from passes.formats import format_of
from passes.graph.boundary import export_graph, import_graph
from passes.graph.jsontext import parse_json, stored_texts
from passes.graph.layers import graph_layers
from passes.graph.model import Model
from passes.graph.select import select
from passes.inline_functions import InlineFunctions
from passes.opset import upgrade
from passes.placement.insertion import Insertion, Rounding
from passes.placement.plan import Plan, Target, plan_layers
from passes.placement.unquantizable import counted, no_layer, nothing_left, odd_layers, quantized_already
from passes.policy import POLICY_KEY, Policy, Scheme, load_policy
from passes.smooth import SMOOTH_KEY, Smooth

__all__ = [
    "POLICY_KEY",
    "Quantize",
    "activation_scheme",
    "required_policy_opset",
    "weight_scheme",
]


def weight_scheme(text: str) -> Scheme:
    """Scheme of weights from text. Raises PolicyError where it makes no sense for weights."""
    scheme = Scheme.parse(text)
    return scheme if scheme.is_float else format_of(scheme).weights(scheme, text)


def activation_scheme(text: str) -> Scheme:
    """Scheme of activations from text: asymmetric unless `sym` is said; one scale per tensor."""
    scheme = Scheme.parse(text)
    return scheme if scheme.is_float else format_of(scheme).activations(scheme, text)


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize layers by a policy, or uniformly.

    policy: a policy file or its JSON text; empty means uniform `weights` and `activations`.
    exclude: selectors of layers that stay float. standard: only what stands in ONNX itself, no bit streams:
    GSE as blocks with powers of two as scales, in INT2, INT4 or INT8. rounding: nearest; analytic
    (nearest, with biases corrected by what BatchNormalization says, passes/rounding/analytic.py); with
    calibration data, bias (nearest, with biases corrected), gptq, adaround (learned on top of gptq), or
    brecq (by blocks of layers, on top of that).
    placement: of activations, see rule 8.
    Raises UnsupportedModelError when no layer that should be quantized can be, PolicyError for a policy
    that does not fit, PassError through the protocol.
    """

    weights: str = "int8:channel"
    activations: str = "uint8"
    exclude: tuple[str, ...] = ()
    policy: str = ""
    standard: bool = False
    rounding: Rounding = "nearest"
    placement: Literal["fused", "inputs"] = "fused"
    name: ClassVar[str] = "quantize"

    @classmethod
    def of(cls, policy: Policy, placement: Literal["fused", "inputs"] = "fused") -> Quantize:
        """The pass that obeys `policy`, with the policy written into its text form."""
        return cls(policy=json.dumps(policy.to_json(), separators=(",", ":")), placement=placement)

    def resolve(self, graph: gs.Graph, model: Model) -> Policy:
        """The policy for this model, layer by layer."""
        found = graph_layers(graph)
        layers = [layer for layer, _, _ in found]
        done = quantized_already(model, graph)
        if not layers and self._is_done(model):
            return Policy()
        if not layers:
            raise UnsupportedModelError(no_layer(model, graph, done))
        if self.policy:
            policy = self._given_policy()
            policy = Policy({name: choice for name, choice in policy.layers.items() if name not in done})
            policy.check_names(layers)
        else:
            policy = Policy.uniform(layers, weight_scheme(self.weights), activation_scheme(self.activations))
        if self.exclude:
            policy = policy.exclude(layer.name for layer in select(graph, self.exclude, found))
        known = {layer.name for layer in layers}
        marked = stored_texts(model, EXCLUDE_KEY, list)
        policy = policy.exclude(name for name in marked if name in known)
        # In graph order, whatever order the policy was written in: the same policy gives the same bytes.
        return Policy({layer.name: policy[layer.name] for layer in layers})

    def _given_policy(self) -> Policy:
        if not self.policy.lstrip().startswith("{"):
            policy = load_policy(self.policy)
        else:
            policy = Policy.from_json(parse_json(self.policy, "the policy", PolicyError))
        for name, choice in policy.layers.items():
            if choice.weights.dynamic:
                raise PolicyError(
                    f"layer '{name}': weights are quantized ahead of time; dynamic is for activations"
                )
            held = choice.activations
            if not held.is_float and not format_of(held).holds_activations(held):
                raise PolicyError(f"layer '{name}': {format_of(held).activation_rule}, not {held}")
        return policy

    def _is_done(self, model: Model) -> bool:
        """Whether the model was quantized by this very pass: running it again changes nothing."""
        held = model.metadata.get(POLICY_KEY)
        done = (
            Policy.from_json(parse_json(held, f"{model.name}: the policy in its metadata"))
            if held
            else Policy()
        )
        wanted = self._given_policy() if self.policy else None
        uniform = weight_scheme(self.weights)
        return bool(done.quantized) and all(
            done[name].weights == (wanted[name].weights if wanted else uniform) for name in done.quantized
        )

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        given = model
        model = InlineFunctions()(model, context).model
        graph = import_graph(model)
        resolved = self.resolve(graph, model)
        before, model = model, _smoothed(model, resolved, context)
        graph = graph if model is before else import_graph(model)
        target = Target(self.standard, fuses=self.placement == "fused")
        plan = plan_layers(graph, resolved, target, context)
        policy = plan.policy
        done = quantized_already(model, graph)
        if done:
            context.note("skipped", "", f"{len(done)} layer(s) are quantized already, first '{min(done)}'")
        for reason, names in odd_layers(graph).items():
            context.note("skipped", "", f"{counted(names)} {reason}; stays float")
        if not resolved.quantized:
            if self.policy and not self._is_done(model) and done.intersection(self._given_policy().quantized):
                raise UnsupportedModelError(no_layer(model, graph, done))
            why = "every layer is float in the policy" if not done else "nothing left to quantize"
            context.note("skipped", "", why)
            return model, model is not given
        if not policy.quantized:
            raise UnsupportedModelError(nothing_left(model, resolved, context.notes))
        upgraded = upgrade(model, plan.opset, "the policy", context)
        if upgraded is not model:
            model = upgraded
            graph = import_graph(model)
        for name in {
            format_of(c.activations).prefix.upper() for c in policy.layers.values() if c.is_simulated
        }:
            context.note(
                "info", "", f"activations in {name} are simulated in float: accuracy is real, speed is not"
            )
        if self.rounding not in ("nearest", "analytic") and context.rounder is None:
            raise PolicyError(
                f"{model.name}: rounding={self.rounding} needs calibration data; give `data`, or "
                "rounding=nearest"
            )
        if self.rounding == "analytic" and not context.distributions:
            raise PolicyError(
                f"{model.name}: rounding=analytic needs BatchNormalization that fold_batchnorm folds in the "
                "same recipe, and no pass in between that rescales channels; or rounding=nearest"
            )
        Insertion(graph, model, plan, context, self.rounding).run()
        result = export_graph(graph, model)
        result = result.with_metadata(policy=json.dumps(policy.to_json(), separators=(",", ":")))
        return result.rewritten(self.name, model, exact=False), True


def required_policy_opset(policy: Policy, standard: bool = False, fuses: bool = True) -> int:
    """The least opset that holds every scheme of the policy, for float32 weights."""
    return Plan.of(policy, Target(standard, fuses)).opset


def _smoothed(model: Model, policy: Policy, context: Context) -> Model:
    """Rule 10."""
    done = stored_texts(model, SMOOTH_KEY, dict)
    for site in ("output", "input"):
        names = tuple(name for name in policy if policy[name].smooth == site and name not in done)
        if names:
            # As a pass, so that what was known of the channels it rescales is forgotten.
            model = Smooth(site=site, layers=names)(model, context).model
    return model
