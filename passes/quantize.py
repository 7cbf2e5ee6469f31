"""The policy made real: integer schemes as QuantizeLinear and DequantizeLinear.

1. Weights become integer initializers behind DequantizeLinear (passes/weights.py).
2. Activations get Q/DQ pairs where ONNX Runtime fuses them (passes/placement.py), with calibrated
   ranges: asymmetric real range [low, high] widened to hold 0; symmetric max(|low|, |high|).
3. Biases of layers with quantized weights and activations become int32 with
   scale_bias = scale_x * scale_w; a channel whose bias would leave int32 gets a wider scale_w.
4. Activation formats below 8 bits are simulated: Clip to their range, then an 8-bit Q/DQ on their grid.
5. Layers with dynamic activations go to passes/dynamic.py; layers in subgraphs get weights only.

A weight read by several layers is encoded for each of them; the shared original stays for the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.base import Context, Pass, register
from passes.dynamic import quantize_dynamic
from passes.errors import PolicyError, UnsupportedModelError
from passes.exclude import EXCLUDE_KEY
from passes.graph import add_constant, export_graph, import_graph, is_constant, replace_uses, unique_name, values
from passes.layers import Layer, graph_layers, weight_index
from passes.model import Model
from passes.opset import upgrade
from passes.placement import ActivationPlan, activation_input, plan_activations
from passes.policy import LayerPolicy, Policy, Scheme, load_policy
from passes.select import select
from passes.weights import encode_weight, required_opset, write_weight
from runtime_ops import IntegerFormat, affine_parameters

__all__ = ["Quantize", "activation_scheme", "required_policy_opset", "weight_scheme"]

# Codes of an int32 bias stay below this, so that the accumulator has room for the products.
_BIAS_LIMIT = np.float64(2**30)


def weight_scheme(text: str) -> Scheme:
    """Scheme of weights from text. Raises PolicyError where it makes no sense for weights."""
    scheme = Scheme.parse(text)
    if scheme.dynamic:
        raise PolicyError(f"'{text}': weights are quantized ahead of time; dynamic is for activations")
    return scheme


def activation_scheme(text: str) -> Scheme:
    """Scheme of activations from text: asymmetric unless `sym` is said; one scale per tensor."""
    scheme = Scheme.parse(text)
    if not scheme.is_float and "sym" not in text.lower().split(":"):
        scheme = Scheme.parse(text if "asym" in text else f"{text}:asym")
    if scheme.granularity != "tensor":
        raise PolicyError(f"'{text}': activations have one scale per tensor; drop the granularity")
    return scheme


@dataclass(frozen=True)
class Range:
    """Scale (float32 scalar) and zero point of one activation tensor, and the format of its codes."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    format: IntegerFormat


def activation_range(low: float, high: float, scheme: Scheme) -> Range:
    """Quantization parameters for the calibrated real range [low, high].

    A symmetric scheme of a tensor that is never negative is unsigned with zero point 0.
    """
    signed = scheme.signed and not (scheme.symmetric and low >= 0)
    fmt = IntegerFormat(scheme.bits, signed)
    if scheme.symmetric:
        top = max(abs(low), abs(high), float(np.finfo(np.float32).tiny))
        return Range(np.asarray(top / fmt.highest, np.float32), np.zeros((), fmt.container), fmt)
    scale, zero_point = affine_parameters(low, high, fmt)
    return Range(np.asarray(scale, np.float32), zero_point, fmt)


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize layers by a policy, or uniformly.

    policy: a policy file or its JSON text; empty means uniform `weights` and `activations`.
    exclude: selectors of layers that stay float.
    Raises UnsupportedModelError when the model has no quantizable layer, PolicyError for a policy
    that does not fit, PassError through the protocol.
    """

    weights: str = "int8:channel"
    activations: str = "uint8"
    exclude: tuple[str, ...] = ()
    policy: str = ""
    name: ClassVar[str] = "quantize"

    @classmethod
    def of(cls, policy: Policy) -> Quantize:
        """The pass that obeys `policy`, with the policy written into its text form."""
        return cls(policy=json.dumps(policy.to_json(), separators=(",", ":")))

    def resolve(self, graph: gs.Graph, model: Model) -> Policy:
        """The policy for this model, layer by layer."""
        found = graph_layers(graph)
        layers = [layer for layer, _, _ in found]
        if not layers:
            raise UnsupportedModelError(
                f"{model.name}: has no quantizable layer (Conv, ConvTranspose, Gemm or MatMul with a constant "
                "weight); run simplify first, if its weights are computed"
            )
        if self.policy:
            text = self.policy.lstrip().startswith("{")
            policy = Policy.from_json(json.loads(self.policy)) if text else load_policy(self.policy)
            policy.check_names(layers)
        else:
            policy = Policy.uniform(layers, weight_scheme(self.weights), activation_scheme(self.activations))
        if self.exclude:
            policy = policy.exclude(layer.name for layer in select(graph, self.exclude, found))
        known = {layer.name for layer in layers}
        marked = json.loads(model.metadata.get(EXCLUDE_KEY, "[]"))
        return policy.exclude(name for name in marked if name in known)

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        policy = self.resolve(import_graph(model), model)
        if not policy.quantized:
            context.note("skipped", "", "every layer is float in the policy")
            return model, False
        model = upgrade(model, required_policy_opset(policy), "the policy", context)
        graph = import_graph(model)
        edit = _Edit(graph, model, policy, context)
        modified = edit.run()
        if not modified:
            return model, False
        result = export_graph(graph, model)
        return result.with_metadata(policy=json.dumps(policy.to_json(), separators=(",", ":"))), True


def required_policy_opset(policy: Policy) -> int:
    """The least opset that holds every scheme of the policy."""

    def activations(scheme: Scheme) -> int:
        return 0 if scheme.is_float else 21 if scheme.bits == 16 else 11

    chosen = [policy[name] for name in policy.quantized]
    return max((max(required_opset(c.weights), activations(c.activations)) for c in chosen), default=0)


class _Edit:
    """One quantization of one graph."""

    def __init__(self, graph: gs.Graph, model: Model, policy: Policy, context: Context) -> None:
        self.graph, self.model, self.policy, self.context = graph, model, policy, context
        self.found = graph_layers(graph)
        self.ranges: dict[str, Range] = {}

    def run(self) -> bool:
        static = {id(node): layer for layer, node, home in self.found if home is self.graph}
        plan = plan_activations(self.graph, static, self.policy)
        self._calibrate(plan)
        modified = False
        for layer, node, home in self.found:
            choice = self.policy[layer.name]
            if choice.is_float:
                continue
            if choice.activations.dynamic and home is self.graph and quantize_dynamic(
                home, layer, node, choice, self.context
            ):
                modified = True
            elif not choice.weights.is_float:
                self._encode(layer, node, home, choice)
                modified = True
        for name in plan.tensors:
            modified |= self._insert(plan, name)
        return modified

    def _calibrate(self, plan: ActivationPlan) -> None:
        roots = sorted({root for name, root in plan.source.items()})
        if not roots:
            return
        if self.context.ranges is None:
            raise PolicyError(
                f"{self.model.name}: static activation quantization needs calibration data; give --data, "
                "or activations=float or activations=uint8:dynamic"
            )
        real = self.context.ranges(self.model, [(root, plan.schemes[root].bits) for root in roots])
        for name, root in plan.source.items():
            low, high = real[root]
            self.ranges[name] = activation_range(low, high, plan.schemes[name])

    def _encode(self, layer: Layer, node: gs.Node, home: gs.Graph, choice: LayerPolicy) -> None:
        index = weight_index(node)
        assert index is not None  # graph_layers found it
        tensor = node.inputs[index]
        array = values(tensor)
        input_range = self.ranges.get(activation_input(node).name) if home is self.graph else None
        if not choice.activations.is_float and home is not self.graph:
            self.context.note("info", layer.name, "stands in a subgraph: weights only, activations stay float")
        bias = self._bias(node) if input_range is not None else None
        floor = self._scale_floor(layer, array, bias, input_range)
        try:
            encoded = encode_weight(array, choice.weights, layer.channel_axis, floor)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.model.name}: weight '{tensor.name}' of {layer.name} {error}") from None
        node.inputs[index] = write_weight(home, self.graph, tensor.name, encoded, choice.weights, array.dtype)
        plain = encoded.zero_point is None and encoded.block_size == 0 and choice.weights.bits <= 8
        if bias is not None and input_range is not None and plain:
            self._quantize_bias(node, bias, input_range, encoded.scale)

    def _bias(self, node: gs.Node) -> npt.NDArray[np.float64] | None:
        """A constant bias that ONNX Runtime takes as int32: [C], of a Conv or a plain Gemm."""
        if node.op not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2].is_empty():
            return None
        if not is_constant(node.inputs[2]) or (node.op == "Gemm" and node.attrs.get("beta", 1.0) != 1.0):
            return None
        bias = np.asarray(values(node.inputs[2]), np.float64)
        return bias if bias.ndim == 1 else None

    def _scale_floor(
        self, layer: Layer, array: npt.NDArray[Any], bias: npt.NDArray[np.float64] | None, source: Range | None
    ) -> npt.NDArray[np.float32] | None:
        """Least weight scale per channel that keeps the int32 bias in range."""
        if bias is None or source is None or bias.shape[0] != array.shape[layer.channel_axis]:
            return None
        floor = np.abs(bias) / (float(source.scale) * _BIAS_LIMIT)
        top = np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != layer.channel_axis))
        bits = self.policy[layer.name].weights.bits
        raised = int(np.count_nonzero(floor > top / (2 ** (bits - 1) - 1)))
        if raised:
            self.context.note("info", layer.name, f"{raised} channel(s) got a wider weight scale: int32 bias range")
        return floor.astype(np.float32)

    def _quantize_bias(
        self, node: gs.Node, bias: npt.NDArray[np.float64], source: Range, scale: npt.NDArray[np.float32]
    ) -> None:
        steps = (source.scale * scale).astype(np.float32)
        steps = np.broadcast_to(steps, bias.shape) if scale.ndim else steps
        codes = np.clip(np.rint(bias / steps), -(2**31), 2**31 - 1).astype(np.int32)
        name, dtype = node.inputs[2].name, values(node.inputs[2]).dtype
        inputs = [
            add_constant(self.graph, f"{name}_quantized", codes),
            add_constant(self.graph, f"{name}_scale", steps.astype(dtype)),
            add_constant(self.graph, f"{name}_zero_point", np.zeros(steps.shape, np.int32)),
        ]
        output = gs.Variable(unique_name(self.graph, f"{name}_dequantized"), dtype, list(bias.shape))
        attrs = {"axis": 0} if steps.ndim else {}
        label = unique_name(self.graph, f"{name}_DequantizeLinear")
        self.graph.nodes.append(gs.Node("DequantizeLinear", label, attrs, inputs, [output]))
        node.inputs[2] = output

    def _insert(self, plan: ActivationPlan, name: str) -> bool:
        """Q/DQ on one tensor; readers as the plan says."""
        tensor, source = plan.tensors[name], self.ranges[name]
        if is_constant(tensor):
            return False
        for_all = name in plan.for_all
        readers: Iterable[gs.Node] | None = None if for_all else plan.readers.get(name, [])
        dtype = tensor.dtype if tensor.dtype is not None else np.float32
        shape = tensor.shape
        hint = name
        scale = add_constant(self.graph, f"{hint}_scale", source.scale.astype(dtype))
        zero = add_constant(self.graph, f"{hint}_zero_point", source.zero_point)
        real = gs.Variable(unique_name(self.graph, f"{hint}_dequantized"), dtype, shape)
        if for_all:
            replace_uses(self.graph, tensor, real)
        else:
            replace_uses(self.graph, tensor, real, only=list(readers or ()))
        origin = tensor
        if for_all and any(output is real for output in self.graph.outputs):
            # The graph's output keeps its name: the float tensor before Q takes another one.
            tensor.name, real.name = unique_name(self.graph, f"{hint}_float"), name
        origin = self._simulate_narrow(origin, source, hint)
        coded = gs.Variable(unique_name(self.graph, f"{hint}_quantized"), source.format.container, shape)
        q_name, dq_name = (unique_name(self.graph, f"{hint}_{op}") for op in ("QuantizeLinear", "DequantizeLinear"))
        self.graph.nodes.append(gs.Node("QuantizeLinear", q_name, {}, [origin, scale, zero], [coded]))
        self.graph.nodes.append(gs.Node("DequantizeLinear", dq_name, {}, [coded, scale, zero], [real]))
        return True

    def _simulate_narrow(self, tensor: gs.Tensor, source: Range, hint: str) -> gs.Tensor:
        """Clip to the range of a format below 8 bits, whose container would hold more."""
        fmt = source.format
        if fmt.bits in (8, 16):
            return tensor
        bounds = [(code - int(source.zero_point)) * source.scale for code in (fmt.lowest, fmt.highest)]
        limits = [
            add_constant(self.graph, f"{hint}_{side}", np.asarray(bound, np.float32))
            for side, bound in zip(("low", "high"), bounds)
        ]
        clipped = gs.Variable(unique_name(self.graph, f"{hint}_clipped"), tensor.dtype, tensor.shape)
        self.graph.nodes.append(
            gs.Node("Clip", unique_name(self.graph, f"{hint}_Clip"), {}, [tensor, *limits], [clipped])
        )
        return clipped
