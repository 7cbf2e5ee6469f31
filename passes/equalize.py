"""Cross-layer equalization: even out the channels between two convolutions, without changing the function.

Behind convolution A lies f with f(x / s) = f(x) / s for s > 0, then convolution B (Nagel et al., "Data-free
quantization through weight equalization and bias correction", arXiv:1906.04721). For each channel c between

    s_c = sqrt(r_A / r_B),   r_A = max(max |W_A[c]|, rule 5),   r_B = max |W_B[:, c]|
    W_A[c] / s_c,   b_A[c] / s_c,   W_B[:, c] * s_c

so that r_A = r_B = sqrt(r_A r_B). A depthwise B has the channel on its own first axis and passes it on, so
that chains are evened out from pair to pair, in sweeps until every s lies within 0.1 % of 1.

Legal when
1. A and B are Conv of the main graph with constant weights; B has one group or is depthwise (one filter a
   channel); the bias of A, if any, is constant; nothing else reads their weights, which would be copied.
2. f consists of Relu, LeakyRelu, PRelu with constant slopes, and Clip from 0 up to a constant; every tensor
   between A and B has one reader and is no output of the graph.
3. Channels without weights on one side keep s = 1, and s stays within 1/100 to 100.
4. Clip(x, 0, m) becomes Relu and Min with m / s_c by channel (`clip=min`); with `clip=keep`, and before
   opset 8, whose Min does not broadcast, such pairs are left alone. ONNX Runtime has no integer kernel for
   Min: the convolutions run on integers, the Min between them in float.
5. The bias counts as a weight: r_A is at least 0.3 |b_A[c]| mean(max |W_A|) / mean |b_A|. A channel that is
   nearly dead, its weights next to nothing and its bias not, is else enlarged up to a hundredfold, and with
   it the range of the activations that all channels share (EfficientNet-Lite2: 71 where the median is 1).

Which to use: `smooth{layers=all}` is nearer to float, for it makes the channels of every convolution equal,
those before an Add as well, where equalizing evens out pairs; but the Mul that it adds keeps ONNX Runtime
from the integer Conv kernel. `equalize` keeps it. So: smooth for size and accuracy, equalize for speed
(figures in benchmarks/RESULTS.md).

A model that was equalized already (its metadata say so) is left as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context, Pass, register
from passes.graph.boundary import export_graph, import_graph
from passes.graph.editing import add_constant, consumers, is_constant, unique_name, values
from passes.graph.layers import Layer, graph_layers, weight_index
from passes.graph.model import Model

__all__ = ["EQUALIZE_KEY", "Equalize"]

EQUALIZE_KEY = "onnxq.equalize"
Array = npt.NDArray[np.float64]
_SWEEPS, _TOLERANCE, _LIMIT = 50, 1e-3, 100.0
# The share in which a bias counts as a weight (rule 5), chosen on calibration images of EfficientNet-Lite2.
_BIAS = 0.3


@dataclass
class _Pair:
    """Two convolutions, the Clips between them, and the scale so far, [C]."""

    first: gs.Node
    second: gs.Node
    clips: list[gs.Node] = field(default_factory=list)
    scale: Array = field(default_factory=lambda: np.ones(1))


@register
@dataclass(frozen=True)
class Equalize(Pass):
    """Cross-layer equalization of convolutions, which stay on integer kernels; `smooth{layers=all}` loses
    less accuracy, in deep networks above all, but its layers run in float. clip: see rule 4."""

    clip: Literal["min", "keep"] = "min"
    name: ClassVar[str] = "equalize"
    keeps_function: ClassVar[bool] = True

    def transform(self, model: Model, context: Context) -> tuple[Model, bool]:
        if EQUALIZE_KEY in model.metadata:
            context.note("skipped", "", "equalized already")
            return model, False
        graph = import_graph(model)
        layers = {id(node): layer for layer, node, home in graph_layers(graph) if home is graph}
        pairs = [pair for node in graph.nodes if (pair := self._pair(graph, node, layers, context))]
        weights = {id(node): values(node.inputs[1]) for pair in pairs for node in (pair.first, pair.second)}
        wide = {key: array.astype(np.float64) for key, array in weights.items()}
        _balance(pairs, wide, layers)
        pairs = [pair for pair in pairs if np.abs(pair.scale - 1).max() > _TOLERANCE]
        if not pairs:
            context.note("skipped", "", "no two convolutions to even out")
            return model, False
        changed = {id(node): node for pair in pairs for node in (pair.first, pair.second)}
        for key, node in changed.items():
            held = wide[key].astype(weights[key].dtype)
            node.inputs[1] = add_constant(graph, f"{node.inputs[1].name}_equalized", held)
        for pair in pairs:
            _write_bias(graph, pair)
            for clip in pair.clips:
                _split_clip(graph, clip, pair.scale, len(weights[id(pair.first)].shape))
            spread = float(pair.scale.max() / pair.scale.min())
            context.note("applied", pair.first.name, f"evened out with {pair.second.name} (x{spread:.3g})")
        names = json.dumps([pair.first.name for pair in pairs])
        return export_graph(graph, model).with_metadata(equalize=names), True

    def _pair(
        self, graph: gs.Graph, node: gs.Node, layers: dict[int, Layer], context: Context
    ) -> _Pair | None:
        """The pair that begins with the node, where rules 1 and 2 hold."""
        if not _convolution(node, layers):
            return None
        if len(node.inputs) > 2 and not node.inputs[2].is_empty() and not is_constant(node.inputs[2]):
            return None
        outputs = {id(tensor) for tensor in graph.outputs}
        clips: list[gs.Node] = []
        tensor = node.outputs[0]
        while True:
            readers = consumers(tensor)
            if id(tensor) in outputs or len(readers) != 1 or not any(n is readers[0] for n in graph.nodes):
                return None
            reader = readers[0]
            if _convolution(reader, layers) and reader.inputs[0] is tensor:
                layer = layers[id(reader)]
                single = layer.depthwise and layer.out_channels == layer.groups
                if layer.groups != 1 and not single:
                    return None
                break
            if reader.op == "Clip" and _top(reader) is not None:
                clips.append(reader)
            elif not _homogeneous(reader, tensor):
                return None
            tensor = reader.outputs[0]
        for weighted in (node, reader):
            others = [other.name for other in consumers(weighted.inputs[1]) if other is not weighted]
            if others:
                context.note("refused", weighted.name, f"'{others[0]}' reads its weight as well")
                return None
        if clips and (self.clip == "keep" or graph.opset < 8):
            context.note("refused", node.name, "a Clip stands behind it")
            return None
        return _Pair(node, reader, clips, np.ones(layers[id(node)].out_channels))


def _convolution(node: gs.Node, layers: dict[int, Layer]) -> bool:
    return node.op == "Conv" and id(node) in layers and weight_index(node) == 1


def _homogeneous(node: gs.Node, tensor: gs.Tensor) -> bool:
    if node.op in ("Relu", "LeakyRelu"):
        return True
    return node.op == "PRelu" and node.inputs[0] is tensor and is_constant(node.inputs[1])


def _top(clip: gs.Node) -> float | None:
    """m of a Clip(x, 0, m); None for any other Clip."""
    bounds: list[float | None] = [clip.attrs.get("min"), clip.attrs.get("max")]
    for index in (1, 2):
        if len(clip.inputs) > index and not clip.inputs[index].is_empty():
            if not is_constant(clip.inputs[index]):
                return None
            bounds[index - 1] = float(values(clip.inputs[index]).reshape(-1)[0])
    low, high = bounds
    return float(high) if low == 0 and high is not None and high > 0 else None


def _largest(weight: Array, axis: int) -> Array:
    return np.asarray(np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)))


def _along(scale: Array, weight: Array, axis: int) -> Array:
    return scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _balance(pairs: list[_Pair], weights: dict[int, Array], layers: dict[int, Layer]) -> None:
    """Sweeps over the pairs; writes scaled weights and each pair's whole scale."""
    for _ in range(_SWEEPS):
        furthest = 0.0
        for pair in pairs:
            first, second = weights[id(pair.first)], weights[id(pair.second)]
            axis = 0 if layers[id(pair.second)].depthwise else 1
            before, after = _written(first, pair), _largest(second, axis)
            alive = (before > 0) & (after > 0)
            step = np.sqrt(np.where(alive, before, 1.0) / np.where(alive, after, 1.0))
            whole = np.clip(pair.scale * step, 1 / _LIMIT, _LIMIT)
            step = whole / pair.scale
            weights[id(pair.first)] = first / _along(step, first, 0)
            weights[id(pair.second)] = second * _along(step, second, axis)
            pair.scale = whole
            furthest = max(furthest, float(np.abs(step - 1).max()))
        if furthest < _TOLERANCE:
            return


def _bias(node: gs.Node) -> npt.NDArray[Any] | None:
    present = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    return values(node.inputs[2]) if present else None


def _written(weight: Array, pair: _Pair) -> Array:
    """r_A by channel, the bias counted in (rule 5); `weight` as scaled so far."""
    largest, bias = _largest(weight, 0), _bias(pair.first)
    if bias is None or not bias.any():
        return largest
    scaled = np.abs(bias.astype(np.float64)) / pair.scale
    counted = _BIAS * scaled * (largest.mean() / scaled.mean())
    return np.where(largest > 0, np.maximum(largest, counted), 0.0)


def _write_bias(graph: gs.Graph, pair: _Pair) -> None:
    node, bias = pair.first, _bias(pair.first)
    if bias is not None:
        held: npt.NDArray[Any] = (bias / pair.scale).astype(bias.dtype)
        node.inputs[2] = add_constant(graph, f"{node.inputs[2].name}_equalized", held)


def _split_clip(graph: gs.Graph, clip: gs.Node, scale: Array, rank: int) -> None:
    """Clip(x, 0, m) as Relu and Min with m / s_c, [1, C, 1, ...]."""
    top = _top(clip)
    assert top is not None  # _pair has seen to it
    source, output = clip.inputs[0], clip.outputs[0]
    dtype = output.dtype or source.dtype or np.float32
    bound = (top / scale).reshape([1, -1] + [1] * (rank - 2)).astype(dtype)
    inner = gs.Variable(unique_name(graph, f"{output.name}_relu"), output.dtype, output.shape)
    held = add_constant(graph, f"{clip.name}_bound", bound)
    clip.inputs.clear()
    clip.outputs.clear()
    name = unique_name(graph, f"{clip.name}_Relu")
    graph.nodes.append(gs.Node("Relu", name, {}, [source], [inner]))
    graph.nodes.append(gs.Node("Min", unique_name(graph, f"{clip.name}_Min"), {}, [inner, held], [output]))
    graph.nodes.remove(clip)
