"""TuneQn's two errors of each layer, from one float and one fully quantized run over a few samples.

QDQ error: how far quantize-dequantize moves a tensor of the layer inside the quantized network: its
output where that is quantized, else its input, else (dynamic, weights only) its weights.
XModel error: how far the layer's output in the quantized network is from that in the float network,
so that errors of the layers before it count. Both are relative: ||a - b||_2 / ||a||_2 over all samples.
Combined: 0.5 * norm(qdq) + 0.5 * norm(xmodel), norm = min-max over the layers (TuneQn, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxq.data import Dataset, fit_batch, input_specs
from onnxq.session import load_session
from passes.formats.weights import encode_layer
from passes.graph.boundary import import_graph
from passes.graph.editing import consumers, producer, values
from passes.graph.layers import Layer, graph_layers, weight_index
from passes.graph.model import Model
from passes.placement.places import MOVE_OPS, epilogue_end, quantized_input
from passes.policy import Policy

__all__ = ["LayerErrors", "combine", "measure_layer_errors"]


@dataclass(frozen=True)
class LayerErrors:
    """Relative errors of one layer; `score` is the combined one, 0 to 1 over the layers of a network."""

    layer: str
    op: str
    qdq: float
    xmodel: float
    score: float = 0.0


@dataclass(frozen=True)
class _Probe:
    """Tensor names of one layer: its output in both networks, and a pair around a Q/DQ (or none)."""

    layer: Layer
    float_output: str
    quantized_output: str
    before: str | None
    after: str | None


def _normalise(values_: Sequence[float]) -> list[float]:
    low, high = min(values_), max(values_)
    span = high - low
    return [(value - low) / span if span > 0 else 0.0 for value in values_]


def combine(errors: Sequence[LayerErrors]) -> list[LayerErrors]:
    """The same errors with their combined score, in the same order."""
    if not errors:
        return []
    qdq, xmodel = _normalise([e.qdq for e in errors]), _normalise([e.xmodel for e in errors])
    return [
        LayerErrors(e.layer, e.op, e.qdq, e.xmodel, 0.5 * a + 0.5 * b)
        for e, a, b in zip(errors, qdq, xmodel, strict=True)
    ]


def _pairs(graph: gs.Graph) -> dict[str, tuple[str, str]]:
    """Float tensor -> (that tensor, the tensor behind DQ) in a quantized graph.

    A tensor of less than 8 bits is clipped before Q; the clipping is part of its error.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear":
            continue
        readers = [reader for reader in consumers(node.outputs[0]) if reader.op == "DequantizeLinear"]
        if readers:
            tensor = node.inputs[0]
            behind = readers[0].outputs[0].name
            pairs[tensor.name] = (tensor.name, behind)
            clip = producer(tensor)
            if clip is not None and clip.op == "Clip":
                pairs.setdefault(clip.inputs[0].name, (clip.inputs[0].name, behind))
    return pairs


def _moved_from(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor before data movement, behind which quantizing again changes nothing."""
    maker = producer(tensor)
    while maker is not None and maker.op in MOVE_OPS:
        tensor = maker.inputs[0]
        maker = producer(tensor)
    return tensor


def _probes(model: Model, quantized: Model, policy: Policy) -> list[_Probe]:
    graph, other = import_graph(model), import_graph(quantized)
    outputs = {id(tensor) for tensor in graph.outputs}
    pairs, names = _pairs(other), other.tensors()
    probes = []
    for layer, node, home in graph_layers(graph):
        if home is not graph or policy[layer.name].is_float:
            continue
        end, data = epilogue_end(node, outputs).name, _moved_from(quantized_input(node)[0]).name
        pair = pairs.get(end) or pairs.get(f"{end}_float") or pairs.get(data)
        behind = (pairs.get(end) or pairs.get(f"{end}_float") or (end, end))[1]
        if behind not in names:
            continue
        probes.append(_Probe(layer, end, behind, *(pair or (None, None))))
    return probes


class _Distance:
    """A running relative L2 distance."""

    def __init__(self) -> None:
        self.error = self.size = 0.0

    def update(self, reference: Any, value: Any) -> None:
        self.error += float(np.square(reference - value, dtype=np.float64).sum())
        self.size += float(np.square(reference, dtype=np.float64).sum())

    @property
    def value(self) -> float:
        if self.size == 0:
            return 0.0 if self.error == 0 else math.inf
        return math.sqrt(self.error / self.size)


def _watch(model: Model, names: set[str]) -> tuple[Any, list[str]]:
    """A session that gives the named tensors, and the names that have to be asked for."""
    fed = {value.name for value in model.proto.graph.input}
    wanted = sorted(names - fed)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    return load_session(Model(proto, model.name), threads=1), wanted


def _weight_errors(model: Model, policy: Policy) -> dict[str, float]:
    """Layer name -> relative error of its encoded weights, for the layers whose weights are quantized."""
    errors: dict[str, float] = {}
    for layer, node, _ in graph_layers(import_graph(model)):
        index, scheme = weight_index(node), policy[layer.name].weights
        if index is None or scheme.is_float:
            continue
        weight = np.asarray(values(node.inputs[index]), np.float32)
        distance = _Distance()
        distance.update(weight, encode_layer(layer, weight, scheme).decoded)
        errors[layer.name] = distance.value
    return errors


def measure_layer_errors(
    model: Model,
    quantized: Model,
    policy: Policy,
    dataset: Dataset,
    *,
    batch: int = 2,
    progress: Callable[[int], None] | None = None,
) -> list[LayerErrors]:
    """Errors of every layer that `policy` quantizes, in graph order, combined.

    model: the float network; quantized: the same under `policy`. Layers in subgraphs are left out: their
    tensors cannot be read from outside.
    """
    probes = _probes(model, quantized, policy)
    if not probes:
        return []
    left, left_names = _watch(model, {p.float_output for p in probes})
    tensors = {n for p in probes for n in (p.quantized_output, p.before, p.after) if n is not None}
    right, right_names = _watch(quantized, tensors)
    qdq = {p.layer.name: _Distance() for p in probes}
    xmodel = {p.layer.name: _Distance() for p in probes}
    done = 0
    for item in dataset.batches(fit_batch(batch, input_specs(model.proto))):
        reference = dict(zip(left_names, left.run(left_names, item.inputs), strict=True)) | item.inputs
        value = dict(zip(right_names, right.run(right_names, item.inputs), strict=True)) | item.inputs
        for probe in probes:
            xmodel[probe.layer.name].update(reference[probe.float_output], value[probe.quantized_output])
            if probe.before is not None and probe.after is not None:
                qdq[probe.layer.name].update(value[probe.before], value[probe.after])
        done += item.size
        if progress is not None:
            progress(done)
    weights = _weight_errors(model, policy) if any(probe.before is None for probe in probes) else {}
    errors = []
    for probe in probes:
        name = probe.layer.name
        own = qdq[name].value if probe.before is not None else weights.get(name, 0.0)
        errors.append(LayerErrors(name, probe.layer.op, own, xmodel[name].value))
    return combine(errors)
