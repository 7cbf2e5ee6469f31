"""The policy made real: integer schemes as QuantizeLinear and DequantizeLinear, GSE as nodes of its own.

1. Weights become integer initializers behind DequantizeLinear (passes/weights.py), or bit streams where ONNX
   has no type for them (passes/packed.py); `standard` keeps to ONNX's types.
2. Activations get Q/DQ pairs where ONNX Runtime fuses them (passes/placement.py, passes/activations.py).
3. Biases of layers with quantized weights and activations become int32 (passes/biases.py).
4. Layers with dynamic activations go to passes/dynamic.py; layers in subgraphs get weights only.
5. float64 layers stay float: ONNX has no scale of that type. float16 layers get weights only, since ONNX
   Runtime has no integer kernel that gives float16.
6. GSE activations are simulated: what a layer reads goes through GSEQuantizeDequantize first, in float
   (passes/simulated.py).
7. What is quantized already stays as it is: a layer whose weight comes from DequantizeLinear is not a layer
   any more, and a tensor that has a Q/DQ pair keeps that one.

8. placement=inputs quantizes what layers read and nothing else, as papers on quantization-aware training do:
   nothing fuses, so that weights keep their bit streams and biases stay float.

9. rounding=gptq, adaround, brecq or bias: weights and biases come from the rounder that the application lends
   (passes/rounding.py), which has seen data; layers that it cannot treat are rounded plainly, with a note.

10. Layers that the policy smooths are smoothed first (passes/smooth.py), unless they are already.

11. Functions of the model that hold layers are inlined first (passes/inline_functions.py).

12. A policy that asks for layers to be quantized, none of which can be, is an error with the reasons: a model
   that is quantized already, weights of types without a scale. A policy that wants every layer float is not
   an error, nor is a second run of the same pass.

A weight read by several layers is encoded once for all that have the same scheme (passes/sharing.py). A layer
whose weights would take more bytes than floats stays float (passes/sizes.py).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from passes.base import Context, Pass, register
from passes.editing import values, values_type
from passes.errors import PolicyError, UnsupportedModelError
from passes.exclude import EXCLUDE_KEY
from passes.graph import export_graph, import_graph
from passes.inline_functions import InlineFunctions
from passes.insertion import Insertion, Rounding
from passes.jsontext import parse_json, stored_texts
from passes.layers import graph_layers, weight_index
from passes.model import Model
from passes.opset import upgrade
from passes.packed import LEAST_OPSET, Storage
from passes.policy import FLOAT, POLICY_KEY, LayerPolicy, Policy, Scheme, load_policy
from passes.select import select
from passes.sizes import pays
from passes.smooth import SMOOTH_KEY, Smooth
from passes.unquantizable import counted, no_layer, nothing_left, odd_layers, quantized_already
from passes.weights import container_bits, required_opset

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
    if scheme.dynamic:
        raise PolicyError(f"'{text}': weights are quantized ahead of time; dynamic is for activations")
    return scheme


def activation_scheme(text: str) -> Scheme:
    """Scheme of activations from text: asymmetric unless `sym` is said; one scale per tensor."""
    scheme = Scheme.parse(text)
    if scheme.format == "gse":
        return scheme
    if scheme.format == "tcq":
        raise PolicyError(f"'{text}': a trellis holds weights, no activations; write uint8, gse6 or float")
    if not scheme.is_float and "sym" not in text.lower().split(":"):
        scheme = Scheme.parse(text if "asym" in text else f"{text}:asym")
    if scheme.granularity != "tensor":
        raise PolicyError(f"'{text}': activations have one scale per tensor; drop the granularity")
    return scheme


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize layers by a policy, or uniformly.

    policy: a policy file or its JSON text; empty means uniform `weights` and `activations`.
    exclude: selectors of layers that stay float. standard: only what stands in ONNX itself, no bit streams:
    GSE as blocks with powers of two as scales, in INT2, INT4 or INT8. rounding: nearest; analytic
    (nearest, with biases corrected by what BatchNormalization says, passes/analytic.py); with calibration
    data, bias (nearest, with biases corrected), gptq, adaround (learned on top of gptq), or
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
            if choice.activations.granularity != "tensor" and choice.activations.format != "gse":
                raise PolicyError(
                    f"layer '{name}': activations have one scale per tensor, not {choice.activations}"
                )
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
        fuses = self.placement == "fused"
        policy = _supported(resolved, graph, self.standard, context, fuses)
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
        least = required_policy_opset(policy, self.standard, fuses)
        if _has_float16_scales(policy, graph, self.standard, fuses):
            least = max(least, 19)
        upgraded = upgrade(model, least, "the policy", context)
        if upgraded is not model:
            model = upgraded.rewritten("opset upgrade", model, exact=True)
            graph = import_graph(model)
        if any(choice.activations.format == "gse" for choice in policy.layers.values()):
            context.note(
                "info", "", "activations in GSE are simulated in float: accuracy is real, speed is not"
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
        Insertion(graph, model, policy, context, self.standard, self.rounding, fuses).run()
        result = export_graph(graph, model)
        result = result.with_metadata(policy=json.dumps(policy.to_json(), separators=(",", ":")))
        return result.rewritten(self.name, model, exact=False), True


def required_policy_opset(policy: Policy, standard: bool = False, fuses: bool = True) -> int:
    """The least opset that holds every scheme of the policy.

    Static activations take 13: a DequantizeLinear per channel keeps float layers between two pairs float
    (passes/activations.py), and ONNX Runtime runs MaxPool on integers from 12 on.
    """

    def weights(choice: LayerPolicy) -> int:
        packed = Storage(standard, fuses).packs(choice)
        return LEAST_OPSET if packed else required_opset(choice.weights)

    def activations(scheme: Scheme) -> int:
        if scheme.format == "gse":
            return LEAST_OPSET
        return 0 if scheme.is_float else 21 if scheme.bits == 16 else 11 if scheme.dynamic else 13

    chosen = [policy[name] for name in policy.quantized]
    return max((max(weights(choice), activations(choice.activations)) for choice in chosen), default=0)


def _has_float16_scales(policy: Policy, graph: gs.Graph, standard: bool, fuses: bool) -> bool:
    """Whether a DequantizeLinear gives float16, which takes opset 19. Bit streams give float32 to a Cast."""
    for layer, node, _ in graph_layers(graph):
        choice, index = policy[layer.name], weight_index(node)
        if index is None or choice.weights.is_float or values(node.inputs[index]).dtype != np.float16:
            continue
        if not Storage(standard, fuses).packs(choice):
            return True
    return False


def _smoothed(model: Model, policy: Policy, context: Context) -> Model:
    """Rule 10."""
    done = stored_texts(model, SMOOTH_KEY, dict)
    for site in ("output", "input"):
        names = tuple(name for name in policy if policy[name].smooth == site and name not in done)
        if names:
            # As a pass, so that what was known of the channels it rescales is forgotten.
            model = Smooth(site=site, layers=names)(model, context).model
    return model


def _supported(policy: Policy, graph: gs.Graph, standard: bool, context: Context, fuses: bool) -> Policy:
    """The policy without what the layers' float types do not allow (rule 5), each with a note."""
    changed = dict(policy.layers)
    stored: set[str] = set()
    trellis = next((name for name in policy if policy[name].weights.format == "tcq"), None)
    if standard and trellis is not None:
        raise PolicyError(f"layer '{trellis}': a trellis has no form in ONNX's own types; drop standard")
    for layer, node, _ in graph_layers(graph):
        choice, index = policy[layer.name], weight_index(node)
        if choice.is_float or index is None:
            continue
        dtype = values_type(node.inputs[index])
        if dtype == np.float64:
            context.note(
                "refused",
                layer.name,
                "its weights are float64, and ONNX has no scale of that type; stays float",
            )
            changed[layer.name] = LayerPolicy()
            continue
        if dtype == np.float16 and not choice.activations.is_float:
            context.note(
                "refused", layer.name, "float16: its weights are quantized, its activations stay float16"
            )
            changed[layer.name] = dataclasses.replace(choice, activations=FLOAT)
        packed = Storage(standard, fuses).packs(choice)
        reads_integers = fuses and choice.activations.is_integer
        if not choice.weights.is_float and not pays(
            layer, choice.weights, itemsize=dtype.itemsize, integer_activations=reads_integers
        ):
            why = f"its {layer.weights} weights would take more bytes as {choice.weights}; stays float"
            context.note("refused", layer.name, why)
            changed[layer.name] = LayerPolicy()
            continue
        if (
            not packed
            and not choice.weights.is_float
            and (container_bits(choice.weights.bits) != choice.weights.bits)
        ):
            stored.add(
                f"{choice.weights.bits}-bit weights are stored in {container_bits(choice.weights.bits)} bits"
            )
    for text in sorted(stored):
        why = "the integer kernels read no narrower type" if not standard else "ONNX has no narrower type"
        context.note("info", "", f"{text} each: {why}")
    return Policy(changed)
