"""The edit behind `quantize`: every layer of a graph in the scheme that the policy gives it.

The rules are those of passes/quantize.py; this file applies them in order: ranges, rounding, then layer by
layer biases, dynamic or simulated activations and weights, and Q/DQ pairs in one step at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.core.errors import PolicyError
from passes.formats import format_of
from passes.formats.scales import bias_floor
from passes.formats.weights import EncodedWeight
from passes.graph.editing import values, values_type
from passes.graph.inference import infer_types
from passes.graph.layers import Layer, graph_layers, weight_index
from passes.graph.model import Model
from passes.placement.activations import Range, activation_ranges, guard_float_layers, insert_pairs
from passes.placement.biases import constant_bias, fold_gemm_factors, set_bias, write_bias
from passes.placement.dynamic import quantize_dynamic
from passes.placement.places import ActivationPlan, activation_input, plan_activations
from passes.placement.plan import Plan
from passes.placement.sharing import SharedWeights
from passes.placement.simulated import simulate_input
from passes.policy import LayerPolicy
from passes.rounding.analytic import analytic_biases
from passes.rounding.task import RoundedLayer
from passes.rounding.tasks import rounding_tasks

__all__ = ["Insertion", "Rounding"]

Rounding = Literal["nearest", "analytic", "bias", "gptq", "adaround", "brecq"]


class Insertion:
    """One quantization of one graph, which is edited in place.

    plan: of its layers (passes/placement/plan.py), which the opset allows. rounding: as in Quantize.
    """

    def __init__(
        self,
        graph: gs.Graph,
        model: Model,
        plan: Plan,
        context: Context,
        rounding: Rounding = "nearest",
    ) -> None:
        self.graph, self.model, self.plan, self.context = graph, model, plan, context
        self.policy, self.rounding = plan.policy, rounding
        self.found = graph_layers(graph)
        self.types = infer_types(graph)
        self.ranges: dict[str, Range] = {}
        self.shared = SharedWeights(graph, self.found)
        self._floors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def run(self) -> None:
        """Raises PolicyError where static activations have no calibration data."""
        static = {id(node): layer for layer, node, home in self.found if home is self.graph}
        pairs = plan_activations(self.graph, static, self.policy, inputs_only=not self.plan.target.fuses)
        self._calibrate(pairs)
        self._pool_floors()
        rounded: Mapping[str, RoundedLayer] = {}
        lent = self.graph, self.found, self.plan, self.ranges, self.context
        if self.rounding == "analytic":
            tasks = rounding_tasks(*lent, method="bias")
            rounded = analytic_biases(self.graph, self.found, tasks, self.context)
        elif self.rounding != "nearest" and self.context.rounder is not None:
            tasks = rounding_tasks(*lent, method=self.rounding)
            rounded = self.context.rounder(self.model, tasks)
        for layer, node, home in self.found:
            choice = self.policy[layer.name]
            if choice.is_float:
                continue
            held = rounded.get(layer.name)
            if held is not None and held.note:
                self.context.note("info", layer.name, held.note)
            index = weight_index(node)
            if held is not None and held.bias is not None and index is not None:
                set_bias(self.graph, node, held.bias, values_type(node.inputs[index]))
            encoded = held.encoded if held is not None else self.context.encoded.get(layer.name)
            dynamic = choice.activations.dynamic and home is self.graph
            form = self.plan[layer.name].form
            given = home, layer, node, choice, form, self.context, self.shared, encoded
            if dynamic and quantize_dynamic(*given):
                continue
            if choice.is_simulated:
                simulate_input(home, self.graph, layer, node, choice.activations, self.types, self.context)
            if not choice.weights.is_float:
                self._encode(layer, node, home, choice, encoded)
        self.shared.tell(self.policy, self.context)
        insert_pairs(self.graph, pairs, self.ranges, self.types)
        for name in guard_float_layers(self.graph):
            why = "has one input channel, so that ONNX Runtime may quantize its float weights by itself"
            self.context.note("info", name, why)

    def _calibrate(self, plan: ActivationPlan) -> None:
        roots = sorted({root for name, root in plan.source.items()})
        if not roots:
            return
        if self.context.ranges is None:
            raise PolicyError(
                f"{self.model.name}: static activation quantization needs calibration data; give `data`, "
                "or activations=float or activations=uint8:dynamic"
            )
        real = self.context.ranges(self.model, [(root, plan.schemes[root].bits) for root in roots])
        self.ranges = activation_ranges(plan, real)

    def _encode(
        self,
        layer: Layer,
        node: gs.Node,
        home: gs.Graph,
        choice: LayerPolicy,
        encoded: EncodedWeight | None = None,
    ) -> None:
        index = weight_index(node)
        assert index is not None  # graph_layers found it
        if choice.activations.is_integer and home is not self.graph:
            self.context.note(
                "info", layer.name, "stands in a subgraph: weights only, activations stay float"
            )
        fold_gemm_factors(self.graph, node, index)
        tensor = node.inputs[index]
        array = values(tensor)
        source, bias = self._integer_bias(layer, node, home)
        floor = None
        if bias is not None and source is not None:
            floor = self._scale_floor(layer, array, bias, source, choice)
        if (layer.weight, str(choice.weights)) in self._floors:
            floor = self._floors[layer.weight, str(choice.weights)]
        plan, scheme = self.plan[layer.name], choice.weights
        form = plan.form
        assert form is not None  # the weight does not stay float
        if encoded is None:
            encoded = self.shared.encoded(layer, tensor, array, scheme, floor, half=plan.half)
        told = format_of(scheme).losses(encoded)
        if told is not None:
            self.context.note("info", layer.name, told)

        def write(graph: gs.Graph, stored: EncodedWeight) -> gs.Tensor:
            return form.write(graph, self.graph, tensor.name, stored, scheme, array.dtype, plan.shield)

        node.inputs[index] = self.shared.place(layer, home, encoded, scheme, form, plan.shield, write)
        if form.gives == "codes" and bias is not None and source is not None:
            write_bias(self.graph, node, bias, source.scale, encoded.scale)

    def _integer_bias(
        self, layer: Layer, node: gs.Node, home: gs.Graph
    ) -> tuple[Range | None, npt.NDArray[np.float64] | None]:
        """Range of what the layer reads and its bias, where the bias becomes int32."""
        source = self.ranges.get(activation_input(node).name) if home is self.graph else None
        source = source if self.plan.target.fuses else None
        # ONNX Runtime would quantize the bias of 16-bit weights as well, and let it overflow.
        if source is None or not self.plan[layer.name].integer_bias:
            return source, None
        return source, constant_bias(node, layer.weight_shape[layer.channel_axis])

    def _pool_floors(self) -> None:
        """Least scales that suit the biases of all layers of a weight: its codes stay the same for all."""
        for layer, node, home in self.found:
            choice, index = self.policy[layer.name], weight_index(node)
            if choice.weights.is_float or index is None or not self.shared.is_shared(layer):
                continue
            fold_gemm_factors(self.graph, node, index)
            source, bias = self._integer_bias(layer, node, home)
            if source is not None and bias is not None:
                key = layer.weight, str(choice.weights)
                floor = bias_floor(bias, float(source.scale))
                self._floors[key] = np.maximum(self._floors.get(key, floor), floor)

    def _scale_floor(
        self,
        layer: Layer,
        array: npt.NDArray[Any],
        bias: npt.NDArray[np.float64],
        source: Range,
        choice: LayerPolicy,
    ) -> npt.NDArray[np.float32]:
        floor = bias_floor(bias, float(source.scale))
        top = np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != layer.channel_axis))
        if choice.weights.granularity == "tensor":
            raised = int(floor.max() > top.max() / (2 ** (choice.weights.bits - 1) - 1))
            where = "its weight scale was widened"
        else:
            raised = int(np.count_nonzero(floor > top / (2 ** (choice.weights.bits - 1) - 1)))
            where = f"{raised} channel(s) got a wider weight scale"
        if raised:
            self.context.note("info", layer.name, f"{where}: int32 bias range")
        return floor
