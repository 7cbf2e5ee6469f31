"""What a model file holds, read from its nodes: layers, sizes, and the schemes that its weights really have.

A policy in the metadata says what was wanted; the nodes that make the weights say what is there.
Both are given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from passes.core.errors import UserError
from passes.formats import simulation_of, stream_of
from passes.graph.external_data import tensor_array
from passes.graph.jsontext import parse_json
from passes.graph.light import without_values
from passes.graph.model import Model, every_graph
from passes.policy import Policy

__all__ = ["LayerFacts", "describe", "layer_facts"]

_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "ConvInteger": 1, "MatMulInteger": 1}
_MOVES = {"Reshape", "Transpose", "Identity", "Cast", "Slice", "Squeeze", "Unsqueeze", "Flatten"}
_BITS = {
    "int2": 2,
    "uint2": 2,
    "int4": 4,
    "uint4": 4,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
    "float16": 16,
}


@dataclass(frozen=True)
class LayerFacts:
    """One weighted node as it stands in the file.

    weights, activations: scheme read from the nodes. policy: the scheme that the metadata asks for, if any.
    stored_bits: bits per weight in the file; macs: per sample, None where shapes are unknown.
    """

    name: str
    op: str
    weight: str
    weight_shape: tuple[int, ...]
    groups: int
    parameters: int
    macs: int | None
    weights: str
    activations: str
    policy: str
    stored_bits: int

    @property
    def padded(self) -> bool:
        """Whether the weights are stored in a wider type than their scheme needs."""
        wanted = "".join(c for c in self.policy.split(":")[0].split("/")[0] if c.isdigit())
        return bool(wanted) and int(wanted) < self.stored_bits


def _decodes(node: onnx.NodeProto) -> bool:
    """Whether the node makes a float weight of codes."""
    return node.op_type == "DequantizeLinear" or stream_of(node.domain, node.op_type) is not None


def _dtype(number: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


class _Reader:
    """One look at a model: its tensors by name, who makes them, and their shapes."""

    def __init__(self, model: Model) -> None:
        light = without_values(model.proto)
        proto = _inferred(light.proto)
        self.nodes = [node for graph in every_graph(proto.graph) for node in graph.node]
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.held: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.held.update(light.weights)
        for graph in every_graph(proto.graph):
            self.held.update({tensor.name: tensor for tensor in graph.initializer})
            for value in (*graph.input, *graph.value_info, *graph.output):
                if value.type.tensor_type.HasField("shape"):
                    dims = value.type.tensor_type.shape.dim
                    self.shapes[value.name] = tuple(
                        d.dim_value if d.HasField("dim_value") else 1 for d in dims
                    )
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.held[node.output[0]] = node.attribute[0].t
        self.shapes.update({name: tuple(tensor.dims) for name, tensor in self.held.items()})

    def origin(self, name: str) -> tuple[str, onnx.NodeProto | None]:
        """The tensor behind reshapes and the like, and the node that makes it."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in _MOVES and name not in self.held:
            name = maker.input[0]
            maker = self.makers.get(name)
        return name, maker

    def weight(self, node: onnx.NodeProto) -> tuple[str, onnx.NodeProto | None] | None:
        """(weight tensor as stored, the node that decodes it or None) of a weighted node, if any."""
        candidates = (1, 0) if node.op_type in ("MatMul", "MatMulInteger") else (1,)
        for index in candidates:
            name, maker = self.origin(node.input[index])
            if name in self.held:
                return name, None
            if maker is not None and _decodes(maker) and maker.input[0] in self.held:
                return maker.input[0], maker
        return None

    def scheme(self, stored: str, maker: onnx.NodeProto | None, node: onnx.NodeProto) -> str:
        """The scheme of a weight as text, from its codes, scale and zero point."""
        kind = _dtype(self.held[stored].data_type)
        if maker is not None and maker.op_type != "DequantizeLinear":
            return self._stream_scheme(maker)
        if maker is None and not node.op_type.endswith("Integer"):
            return "float" if kind == "float32" else kind
        scale = maker.input[1] if maker is not None else self._dynamic_scale(node)
        zero = maker.input[2] if maker is not None and len(maker.input) > 2 else ""
        block = next((a.i for a in maker.attribute if a.name == "block_size"), 0) if maker is not None else 0
        middle = node.input[3] if node.op_type.endswith("Integer") and len(node.input) > 3 else ""
        if kind == "uint8" and middle in self.held and np.all(tensor_array(self.held[middle]) == 128):
            kind = "int8"  # the same symmetric weights, around 128 (passes/placement/dynamic.py)
        parts = [kind]
        if block:
            parts.append(f"block{block}")
        elif math.prod(self.shapes.get(scale, ())) > 1:
            parts.append("channel")
        if zero in self.held and np.any(np.asarray(tensor_array(self.held[zero])).astype(np.int32)):
            parts.append("asym")
        return ":".join(parts)

    def _stream_scheme(self, maker: onnx.NodeProto) -> str:
        """The scheme of a bit stream (passes/formats/), from its node's attributes."""
        stream = stream_of(maker.domain, maker.op_type)
        assert stream is not None  # `weight` said so
        shape = next((tuple(a.ints) for a in maker.attribute if a.name == "shape"), ())

        def array(index: int) -> npt.NDArray[Any] | None:
            name = maker.input[index]
            return tensor_array(self.held[name]) if name in self.held else None

        return stream.text(_integers(maker), shape, array)

    def _dynamic_scale(self, node: onnx.NodeProto) -> str:
        """The weight scale of an integer operator: the constant of the Mul behind its result."""
        wanted = node.input[1].removesuffix("_quantized") + "_scale"
        return wanted if wanted in self.held else ""

    def activations(self, node: onnx.NodeProto) -> str:
        """The scheme of what the node reads."""
        if node.op_type.endswith("Integer"):
            return "uint8:dynamic"
        index = 0 if self.origin(node.input[0])[0] not in self.held else 1
        _, maker = self.origin(node.input[index])
        simulation = simulation_of(maker.domain, maker.op_type) if maker is not None else None
        if maker is not None and simulation is not None:
            return simulation.text(_integers(maker))
        if maker is None or maker.op_type != "DequantizeLinear":
            return "float"
        zero = maker.input[2] if len(maker.input) > 2 else ""
        return _dtype(self.held[zero].data_type) if zero in self.held else "uint8"

    def macs(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> int | None:
        out = self.shapes.get(node.output[0])
        if not out or not shape:
            return None
        if node.op_type == "ConvTranspose":
            source = self.shapes.get(node.input[0], ())
            return math.prod(source[1:]) * (math.prod(shape) // shape[0]) if source else None
        if node.op_type.startswith("Conv"):
            return math.prod(out[1:]) * math.prod(shape[1:])
        channels = out[-1]
        return math.prod(out[1:]) * (math.prod(shape) // channels if channels else 0)


def _as_wanted(real: str, wanted: str, row_size: int) -> str:
    """The wanted scheme where a row is one group of it, shorter than its block: nothing tells them apart."""
    block = next((part[5:] for part in wanted.split(":") if part.startswith("block")), "")
    same = wanted.partition(":")[0] == real.partition(":")[0] and block.isdigit() and int(block) >= row_size
    return wanted if same else real


def _integers(node: onnx.NodeProto) -> dict[str, int]:
    return {a.name: int(a.i) for a in node.attribute if a.type == onnx.AttributeProto.INT}


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return proto


def _policy(model: Model) -> dict[str, dict[str, str]]:
    """What the metadata asks for, layer by layer; nothing where it is not a policy: the nodes count."""
    try:
        document = parse_json(model.metadata.get("onnxq.policy", '{"layers": {}}'), model.name)
        return {name: entry.to_json() for name, entry in Policy.from_json(document).layers.items()}
    except UserError:
        return {}


def layer_facts(model: Model) -> list[LayerFacts]:
    """Every weighted node in graph order, float or quantized."""
    reader, wanted = _Reader(model), _policy(model)
    facts = []
    for node in reader.nodes:
        if node.op_type not in _WEIGHTED or len(node.input) < 2:
            continue
        weight = reader.weight(node)
        if weight is None:
            continue
        stored, maker = weight
        dims = tuple(reader.held[stored].dims)
        stream = maker is not None and maker.op_type != "DequantizeLinear"
        shape = dims if node.op_type.endswith("Integer") else reader.shapes.get(node.input[1], dims)
        if not stream and math.prod(shape) != math.prod(dims):
            shape = dims
        name = node.name.removesuffix(f"_{node.op_type}") if node.op_type.endswith("Integer") else node.name
        entry = wanted.get(name)
        scheme = reader.scheme(stored, maker, node)
        if stream and entry and maker is not None:
            scheme = _as_wanted(scheme, entry["weights"], _integers(maker).get("group_size", 0))
        facts.append(
            LayerFacts(
                name=name,
                op=node.op_type,
                weight=stored,
                weight_shape=shape,
                groups=next((int(a.i) for a in node.attribute if a.name == "group"), 1),
                parameters=math.prod(shape),
                macs=reader.macs(node, shape),
                weights=scheme,
                activations=reader.activations(node),
                policy=f"{entry['weights']}/{entry['activations']}" if entry else "",
                stored_bits=_integers(maker).get("bits", 0)
                if maker is not None and stream
                else _BITS.get(_dtype(reader.held[stored].data_type), 32),
            )
        )
    return facts


def _values(values: Any, skip: set[str]) -> list[dict[str, Any]]:
    found = []
    for value in values:
        if value.name in skip:
            continue
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
        kind = _dtype(tensor.elem_type) if tensor.elem_type else value.type.WhichOneof("value") or "?"
        found.append({"name": value.name, "dtype": kind, "shape": dims if tensor.HasField("shape") else None})
    return found


def _parameters(model: Model, layers: Sequence[LayerFacts]) -> int:
    """Numbers in initializers; of a bit stream those that it decodes to, its tables not counted."""
    graphs = list(every_graph(model.proto.graph))
    nodes = [node for graph in graphs for node in graph.node]
    streams = {name for node in nodes if stream_of(node.domain, node.op_type) for name in node.input}
    plain: int = sum(math.prod(t.dims) for g in graphs for t in g.initializer if t.name not in streams)
    return plain + sum(layer.parameters for layer in layers if layer.weight in streams)


def describe(model: Model, size: int) -> dict[str, Any]:
    """The model as plain JSON. size: bytes of the file, external data included."""
    graph = model.proto.graph
    ops = Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for g in every_graph(graph)
        for node in g.node
    )
    layers = layer_facts(model)
    known = [layer.macs for layer in layers if layer.macs is not None]
    return {
        "model": model.name,
        "bytes": size,
        "ir_version": model.proto.ir_version,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import},
        "producer": " ".join(filter(None, (model.proto.producer_name, model.proto.producer_version))),
        "inputs": _values(graph.input, {tensor.name for tensor in graph.initializer}),
        "outputs": _values(graph.output, set()),
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": _parameters(model, layers),
        "macs": sum(known) if known else None,
        "metadata": {
            k.removeprefix("onnxq."): v for k, v in model.metadata.items() if k.startswith("onnxq.")
        },
        "layers": [{**asdict(layer), "weight_shape": list(layer.weight_shape)} for layer in layers],
    }
