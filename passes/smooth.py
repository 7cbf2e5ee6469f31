"""Smoothing: make the channels of a weight equally large, so that one scale per tensor serves them all.

For each output channel c of a convolution: s_c = max|w_c|, w'_c = w_c / s_c, and a per-channel
multiplication by s_c restores the output (Smoothed per-tensor weight quantization):
- site=output: y = s * (conv(x, w') + b / s); the Mul stands behind the Conv, before its activation.
- site=input: depthwise only (output channel = input channel): conv(s * x, w') + b; Mul before the Conv.

The scales are normalised to max_c s_c = 1, so that the largest weight of the tensor stays as it was.
Rules:
1. Dead channels: s_c >= max_c s_c / `floor` (256), or b / s explodes (ratios up to 1e31 were seen).
2. absorb=auto: a scale disappears into a neighbour where that is exact, else a Mul is inserted.
   site=output, behind the layer, across Relu only (homogeneous: relu(s y) = s relu(y) for s > 0): into a
   Conv that is the only reader and is not itself smoothed; or into a following per-channel Mul.
   site=input, before the layer, across Relu only: into a producing Conv that is not itself smoothed.
3. A weight that other nodes read is not changed under them: those that are smoothed share the smoothed one,
   which is a copy, told with its size, if others are not. No scale is absorbed into such a weight.
4. A layer smoothed already (its note in the metadata) is skipped: the pass is idempotent.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context, Pass, register
from passes.core.fields import Option
from passes.graph.boundary import export_graph, import_graph
from passes.graph.editing import (
    add_constant,
    add_shared,
    consumers,
    is_constant,
    producer,
    replace_uses,
    unique_name,
    values,
)
from passes.graph.jsontext import stored_texts
from passes.graph.layers import Layer, graph_layers, weight_index
from passes.graph.model import Model
from passes.graph.select import select

__all__ = ["SMOOTH_KEY", "Smooth"]

SMOOTH_KEY = "onnxq.smooth"


@register
@dataclass(frozen=True)
class Smooth(Pass):
    """Smooth convolutions, whose scales stay in float: for size and accuracy; `equalize` is for speed.
    layers: `depthwise`, `all` or selectors; floor: see rule 1."""

    site: Literal["output", "input"] = "output"
    layers: tuple[str, ...] = ("depthwise",)
    absorb: Literal["auto", "never"] = "auto"
    floor: Annotated[float, Option(above=0)] = 256.0
    name: ClassVar[str] = "smooth"
    keeps_function: ClassVar[bool] = True

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        graph = import_graph(model)
        found = graph_layers(graph)
        if self.layers == ("depthwise",) and not any(layer.depthwise for layer, _, _ in found):
            context.note("skipped", "", "the model has no depthwise convolution")
            return model, False
        done: dict[str, str] = stored_texts(model, SMOOTH_KEY, dict)
        chosen = {layer.name for layer in select(graph, self.layers, found)}
        edit = _Smoother(graph, self, chosen | set(done))
        counts: Counter[str] = Counter()
        for layer, node, home in found:
            if layer.name not in chosen:
                continue
            refusal = "smoothed already" if layer.name in done else edit.refusal(layer, node, home)
            if refusal is not None:
                context.note("skipped", layer.name, refusal)
                counts["skipped"] += 1
                continue
            copied = edit.copy_of(node, chosen)
            if copied:
                context.note("info", layer.name, copied)
            how = edit.apply(node)
            counts["absorbed" if how.startswith("absorbed") else "inserted"] += 1
            context.note("applied", layer.name, how)
            done[layer.name] = self.site
        summary = ", ".join(f"{counts[kind]} {kind}" for kind in ("absorbed", "inserted", "skipped"))
        context.note("info", "", f"smoothing at {self.site}: {summary}")
        if not counts["absorbed"] and not counts["inserted"]:
            return model, False
        return export_graph(graph, model).with_metadata(smooth=json.dumps(done)), True


class _Smoother:
    """smoothed: names of layers that are smoothed, now or earlier; none of them absorbs a scale."""

    def __init__(self, graph: gs.Graph, options: Smooth, smoothed: set[str]) -> None:
        self.graph, self.options, self.smoothed = graph, options, smoothed
        self.outputs = {id(tensor) for tensor in graph.outputs}

    def refusal(self, layer: Layer, node: gs.Node, home: gs.Graph) -> str | None:
        """Why the layer cannot be smoothed; None when it can."""
        if layer.op != "Conv":
            return f"only Conv is smoothed, not {layer.op}"
        if home is not self.graph:
            return "stands in a subgraph"
        if self.options.site == "input" and not (layer.depthwise and layer.out_channels == layer.groups):
            return "site=input needs a depthwise convolution with one filter per channel"
        if len(node.inputs) > 2 and not node.inputs[2].is_empty() and not is_constant(node.inputs[2]):
            return "its bias is computed at run time"
        weight = values(node.inputs[1])
        if not np.isfinite(weight).all():
            return "its weight holds NaN or Inf"
        if not np.any(weight):
            return "all its weights are zero"
        reader = consumers(node.outputs[0])
        if self.options.site == "output" and len(reader) == 1 and reader[0].op == "BatchNormalization":
            return "a BatchNormalization stands behind it: fold it first"
        return None

    def copy_of(self, node: gs.Node, chosen: set[str]) -> str:
        """What the copy of a weight costs that a node reads which is not smoothed; "" where there is none."""
        others = [other.name for other in consumers(node.inputs[1]) if other.name not in chosen]
        size = values(node.inputs[1]).nbytes
        return f"its weight is copied ({size} bytes): '{others[0]}' reads it too" if others else ""

    def _scales(self, weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """s_c in float64 [C], within (1/floor, 1]."""
        magnitude = np.abs(weight.astype(np.float64)).max(axis=tuple(range(1, weight.ndim)))
        relative = magnitude / magnitude.max()
        return np.asarray(np.maximum(relative, 1.0 / self.options.floor))

    def apply(self, node: gs.Node) -> str:
        """Rewrite weights and bias and place the scale; says where it went."""
        weight = values(node.inputs[1])
        # Rounded first, so that w / s * s uses the scale that the graph will hold.
        scale = self._scales(weight).astype(weight.dtype)
        smoothed = weight / scale.reshape([-1] + [1] * (weight.ndim - 1))
        node.inputs[1] = add_shared(self.graph, f"{node.inputs[1].name}_smoothed", smoothed)
        if self.options.site == "input":
            return self._place_before(node, scale)
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            bias = values(node.inputs[2]) / scale
            node.inputs[2] = add_shared(self.graph, f"{node.inputs[2].name}_smoothed", bias)
        return self._place_behind(node, scale)

    def _spread(self, scale: npt.NDArray[Any], node: gs.Node) -> npt.NDArray[Any]:
        rank = len(values(node.inputs[1]).shape)
        return scale.reshape([1, -1] + [1] * (rank - 2))

    def _place_behind(self, node: gs.Node, scale: npt.NDArray[Any]) -> str:
        if self.options.absorb == "auto":
            taker = self._taker(node.outputs[0], scale)
            if taker is not None:
                return taker
        output = node.outputs[0]
        inner = gs.Variable(unique_name(self.graph, f"{output.name}_smoothed"), output.dtype, output.shape)
        node.outputs[0] = inner
        factor = add_constant(self.graph, f"{node.name}_smooth_scale", self._spread(scale, node))
        name = unique_name(self.graph, f"{node.name}_smooth_Mul")
        self.graph.nodes.append(gs.Node("Mul", name, {}, [inner, factor], [output]))
        return "inserted a Mul behind it"

    def _taker(self, tensor: gs.Tensor, scale: npt.NDArray[Any]) -> str | None:
        """Multiply `scale` into the only reader's constant, across Relu; None where nothing fits exactly."""
        while True:
            readers = consumers(tensor)
            if id(tensor) in self.outputs or len(readers) != 1:
                return None
            reader = readers[0]
            if reader.op != "Relu":
                break
            tensor = reader.outputs[0]
        if reader.op == "Mul":
            return self._into_mul(reader, tensor, scale)
        index = weight_index(reader)
        if (
            reader.op == "Conv"
            and index == 1
            and reader.name not in self.smoothed
            and reader.inputs[0] is tensor
            and len(consumers(reader.inputs[1])) == 1
        ):
            weight = values(reader.inputs[1])
            if int(reader.attrs.get("group", 1)) == 1:
                factor = scale.reshape([1, -1] + [1] * (weight.ndim - 2))
            elif weight.shape[0] == int(reader.attrs["group"]) == len(scale):
                factor = scale.reshape([-1] + [1] * (weight.ndim - 1))
            else:
                return None
            reader.inputs[1] = add_constant(self.graph, f"{reader.inputs[1].name}_scaled", weight * factor)
            return f"absorbed into {reader.name}"
        return None

    def _into_mul(self, reader: gs.Node, tensor: gs.Tensor, scale: npt.NDArray[Any]) -> str | None:
        for index, other in enumerate(reader.inputs):
            if other is tensor or not is_constant(other):
                continue
            held = values(other)
            shape = tensor.shape
            rank = len(shape) if shape is not None else held.ndim
            if held.size not in (1, len(scale)) or (
                held.size > 1 and (held.ndim != rank or held.shape[1] != held.size)
            ):
                return None
            if held.size == 1 and shape is None:
                return None
            factor = held * scale.reshape([1, -1] + [1] * (rank - 2))
            reader.inputs[index] = add_constant(self.graph, f"{other.name}_scaled", factor.astype(held.dtype))
            return f"absorbed into {reader.name}"
        return None

    def _place_before(self, node: gs.Node, scale: npt.NDArray[Any]) -> str:
        if self.options.absorb == "auto":
            giver = self._giver(node, scale)
            if giver is not None:
                return giver
        source = node.inputs[0]
        factor = add_constant(self.graph, f"{node.name}_smooth_scale", self._spread(scale, node))
        scaled = gs.Variable(unique_name(self.graph, f"{source.name}_smoothed"), source.dtype, source.shape)
        name = unique_name(self.graph, f"{node.name}_smooth_Mul")
        self.graph.nodes.append(gs.Node("Mul", name, {}, [source, factor], [scaled]))
        replace_uses(self.graph, source, scaled, only=[node])
        return "inserted a Mul before it"

    def _giver(self, node: gs.Node, scale: npt.NDArray[Any]) -> str | None:
        """Multiply `scale` into the output channels of the producing Conv, across Relu."""
        tensor = node.inputs[0]
        while True:
            if id(tensor) in self.outputs or len(consumers(tensor)) != 1:
                return None
            source = producer(tensor)
            if source is None or source.op not in ("Relu", "Conv"):
                return None
            if source.op == "Conv":
                break
            tensor = source.inputs[0]
        shared = len(consumers(source.inputs[1])) > 1
        if weight_index(source) != 1 or source.name in self.smoothed or shared:
            return None
        has_bias = len(source.inputs) > 2 and not source.inputs[2].is_empty()
        if has_bias and not is_constant(source.inputs[2]):
            return None
        weight = values(source.inputs[1])
        factor = scale.reshape([-1] + [1] * (weight.ndim - 1))
        source.inputs[1] = add_constant(self.graph, f"{source.inputs[1].name}_scaled", weight * factor)
        if has_bias:
            bias = values(source.inputs[2]) * scale
            source.inputs[2] = add_constant(self.graph, f"{source.inputs[2].name}_scaled", bias)
        return f"absorbed into {source.name}"
