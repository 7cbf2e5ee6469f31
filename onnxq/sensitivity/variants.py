"""What is varied: a few layers in a scheme each, everything else float.

A variant becomes the segments of the model that it changes. Weights alone, the usual case, are encoded and
put into a copy of the small segment that holds their layer; whatever else a policy may ask for (activations,
smoothing) goes through the quantizing passes, and the segments whose bytes differ from float's are the
change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxq.evaluation.segments import Segment, iter_segments, split
from onnxq.rounding.replay import rounded_node
from onnxq.sensitivity.rounded import RoundedWeights
from passes.core.base import Context, RangeProvider
from passes.core.errors import PolicyError, UnsupportedModelError
from passes.formats import format_of
from passes.formats.weights import encode_layer
from passes.graph.external_data import tensor_array
from passes.graph.layers import Layer
from passes.graph.model import Model, every_graph
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme, Site
from passes.quantize import Quantize, activation_scheme, weight_scheme

__all__ = ["Change", "Variant", "VariantBuilder", "choice_text", "find_node", "parse_choice"]

# A weight, and a bias where that is changed too.
Weight = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


def choice_text(choice: LayerPolicy) -> str:
    """`gse4`, `int8:channel/uint8`, `int8/uint8~output`: weights, activations, smoothing."""
    text = str(choice.weights)
    if not choice.activations.is_float:
        text += f"/{choice.activations}"
    return text if choice.smooth == "none" else f"{text}~{choice.smooth}"


def parse_choice(text: str) -> LayerPolicy:
    """The inverse of `choice_text`: `gse4` weights alone, `float/uint4` activations alone, `gse4/uint8` both,
    with `~output` or `~input` smoothed. Raises PolicyError for what is none.
    """
    schemes, _, smooth = text.partition("~")
    weights, slash, activations = schemes.partition("/")
    if smooth not in ("", "none", "input", "output"):
        raise PolicyError(f"'{text}': smoothing is ~input or ~output")
    site: Site = "none" if smooth == "" else cast(Site, smooth)
    return LayerPolicy(weight_scheme(weights), activation_scheme(activations) if slash else FLOAT, site)


@dataclass(frozen=True)
class Variant:
    """Layers with what each of them is given; all others are float."""

    choices: tuple[tuple[str, LayerPolicy], ...]

    @classmethod
    def of(cls, layer: str, choice: LayerPolicy) -> Variant:
        return cls(((layer, choice),))

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return " & ".join(f"{layer}={choice_text(choice)}" for layer, choice in self.choices)

    @property
    def weights_only(self) -> bool:
        return all(choice.activations.is_float and choice.smooth == "none" for _, choice in self.choices)


def find_node(proto: onnx.ModelProto, layer: Layer) -> tuple[onnx.GraphProto, onnx.NodeProto] | None:
    """The layer's node and the graph it stands in; None where this model does not hold it."""
    for graph in every_graph(proto.graph):
        for node in graph.node:
            if node.op_type == layer.op and node.name == layer.name:
                return graph, node
    alone = [
        (graph, node)
        for graph in every_graph(proto.graph)
        for node in graph.node
        if not node.name and node.op_type == layer.op and layer.weight in node.input[:2]
    ]
    return alone[0] if len(alone) == 1 else None


def with_weight(
    proto: onnx.ModelProto, layer: Layer, array: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
) -> onnx.ModelProto:
    """A copy of the model in which the layer, and no other that shares its weight, has `array`, and `bias`
    where one is given. A weight rounded on data has a Gemm's factors in it (`rounded_node`)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    found = find_node(copy, layer)
    assert found is not None  # the segment was chosen because it holds the layer
    graph, node = found
    name = f"{layer.weight}.varied.{layer.depth}"
    index = 1 if layer.weight == node.input[1] else 0
    node.input[index] = name
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    if bias is not None:
        graph.initializer.append(numpy_helper.from_array(bias, f"{name}.bias"))
        node.CopyFrom(rounded_node(node, name, name, f"{name}.bias"))
    _drop(graph, layer.weight)
    return copy


def _drop(graph: onnx.GraphProto, name: str) -> None:
    """Remove an initializer that nobody reads any more."""
    if any(name in node.input for held in every_graph(graph) for node in held.node):
        return
    for position, tensor in enumerate(graph.initializer):
        if tensor.name == name:
            del graph.initializer[position]
            return


def _kind(scheme: Scheme) -> tuple[str, bool]:
    return scheme.format, scheme.dynamic


@dataclass(frozen=True)
class Change:
    """Models that run in the place of the float segments `first` to `last`, one behind the other."""

    first: int
    last: int
    models: tuple[onnx.ModelProto, ...]


class VariantBuilder:
    """Makes the changed segments of variants of one model.

    segments: of the float model under `anchors`, in order; anchors: as `choose_anchors` gives them.
    ranges: for variants with static activations. rounded: makes the weights of variants that change weights
    alone; without it they are rounded to nearest, as are those of all other variants.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        segments: Sequence[Segment],
        anchors: Mapping[str, tuple[int, ...]],
        ranges: RangeProvider | None = None,
        rounded: RoundedWeights | None = None,
    ) -> None:
        self.model, self.ranges, self._anchors, self._rounded = model, ranges, dict(anchors), rounded
        self.layers = {layer.name: layer for layer in layers}
        self._segments = list(segments)
        self._home: dict[str, int] = {}
        for index, segment in enumerate(segments):
            for layer in layers:
                if layer.name not in self._home and find_node(segment.proto, layer) is not None:
                    self._home[layer.name] = index
        self._arrays = {
            tensor.name: tensor for g in every_graph(model.proto.graph) for tensor in g.initializer
        }
        self._encoded: dict[tuple[str, Scheme], Weight] = {}
        self._firsts: dict[tuple[Any, ...], int] = {}

    def home(self, layer: str) -> int:
        """Index of the segment that the layer stands in; the first where only the passes can tell."""
        return self._home.get(layer, 0)

    def home_proto(self, layer: str) -> onnx.ModelProto:
        """The float segment that the layer stands in."""
        return self._segments[self.home(layer)].proto

    def array(self, layer: Layer) -> npt.NDArray[Any]:
        """The layer's float weight. Raises UnsupportedModelError where it is made by a Constant node."""
        if layer.weight not in self._arrays:
            raise UnsupportedModelError(
                f"{self.model.name}: the weight of {layer.name} is no initializer; run simplify first"
            )
        return tensor_array(self._arrays[layer.weight])

    def decoded(self, layer: Layer, scheme: Scheme) -> Weight:
        """The weight as the network will compute with it in that scheme, and the bias where rounding changed
        it; the last few are kept."""
        key = (layer.name, scheme)
        if key not in self._encoded:
            found = None if self._rounded is None else self._rounded.get(layer, scheme)
            if found is None:
                array = self.array(layer)
                encoded = encode_layer(layer, array, scheme, half=format_of(scheme).form(scheme).half)
                found = encoded.decoded.astype(array.dtype), None
            self._encoded[key] = found
            while len(self._encoded) > 1 and not self._fits():
                del self._encoded[next(iter(self._encoded))]
        return self._encoded[key]

    def _fits(self) -> bool:
        held = sum(weight.nbytes for weight, _ in self._encoded.values())
        return len(self._encoded) <= _KEPT and held <= _KEPT_BYTES

    def first(self, variant: Variant) -> int:
        """The segment that the variant's replay starts with."""
        if not self._is_plain(variant):
            # Where the pairs stand depends on what is quantized, not on how many bits it gets.
            shape = tuple(
                (name, *map(_kind, (c.weights, c.activations)), c.smooth) for name, c in variant.choices
            )
            if shape not in self._firsts:
                self._firsts[shape] = self.change(variant).first
            return self._firsts[shape]
        return min((self._home[name] for name, _ in variant.choices), default=0)

    def change(self, variant: Variant) -> Change:
        """What runs in the place of which float segments."""
        if not self._is_plain(variant):
            return self._by_passes(variant)
        homes = [self._home[name] for name, _ in variant.choices]
        first, last = min(homes), max(homes)
        proto = self._merged(first, last)
        for name, choice in variant.choices:
            if not choice.is_float:
                layer = self.layers[name]
                proto = with_weight(proto, layer, *self.decoded(layer, choice.weights))
        return Change(first, last, (proto,))

    def _is_plain(self, variant: Variant) -> bool:
        """Whether only weights change, and every node multiplies by its weight as it stands. Gemm's alpha is
        folded by the passes; it is in a weight that was rounded on data."""
        if not variant.weights_only or any(name not in self._home for name, _ in variant.choices):
            return False
        return not any(self.scaled(name) and not self._by_data(name, c) for name, c in variant.choices)

    def scaled(self, name: str) -> bool:
        """Whether the layer's node is not found by itself, or has a factor beside its weight."""
        found = find_node(self.home_proto(name), self.layers[name])
        return found is None or any(a.name == "alpha" and a.f != 1.0 for a in found[1].attribute)

    def _by_data(self, name: str, choice: LayerPolicy) -> bool:
        return self._rounded is not None and self._rounded.get(self.layers[name], choice.weights) is not None

    def _merged(self, first: int, last: int) -> onnx.ModelProto:
        """Segments first to last as one model."""
        if first == last:
            return self._segments[first].proto
        ends = {self._segments[first - 1].output if first else "", self._segments[last].output}
        cuts = {name: shape for name, shape in self._anchors.items() if name in ends}
        return next(islice(iter_segments(self.model, cuts), 1 if first else 0, None)).proto

    def _by_passes(self, variant: Variant) -> Change:
        context = Context(check=False, ranges=self.ranges)
        quantized = Quantize.of(Policy(dict(variant.choices)))(self.model, context).model
        parts = split(quantized, self._anchors)
        if len(parts) != len(self._segments):
            # The passes removed a cut: nothing is known to be float any more.
            return Change(0, len(self._segments) - 1, (quantized.proto,))
        pairs = zip(parts, self._segments, strict=True)
        differing = [index for index, (part, old) in enumerate(pairs) if part.digest != old.digest]
        first, last = (differing[0], differing[-1]) if differing else (0, 0)
        return Change(first, last, tuple(part.proto for part in parts[first : last + 1]))


# Weights of one layer in every scheme of a search, and of its neighbours where pairs are measured.
_KEPT = 24
_KEPT_BYTES = 2**26
