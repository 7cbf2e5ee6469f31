"""Weights that several layers read: they are stored once, as they were.

Layers that read the same initializer, and whose codes and layout come out the same, share the codes, their
scales and zero points, and the node that makes floats of them. Where layers of one weight get different
schemes, or lay it out differently, or stay float, it is stored for each of these, and a note says what that
costs. A weight that nested graphs read is decoded in the outermost graph.

Codes of 8 bits that are shared are stored as uint8 around 128: the session option x64quantprecision makes
ONNX Runtime (1.31) turn int8 weights into that, reader by reader, and fail at the second one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.formats import Form
from passes.formats.sizes import layer_bytes
from passes.formats.weights import EncodedWeight, encode_layer
from passes.graph.layers import Layer, weight_index
from passes.policy import Policy, Scheme

__all__ = ["SharedWeights"]

Found = Sequence[tuple[Layer, gs.Node, gs.Graph]]


def _digest(encoded: EncodedWeight) -> bytes:
    held = hashlib.sha256(encoded.decoded.tobytes())
    for array in (encoded.codes, encoded.scale, encoded.rows.zero_point):
        held.update(repr((array.dtype.str, array.shape)).encode())
        held.update(np.ascontiguousarray(array).tobytes())
    return held.digest()


@dataclass
class SharedWeights:
    """The weights of one graph while they are encoded and written. found: its layers, before any edit."""

    root: gs.Graph
    found: Found
    _plain: dict[Hashable, EncodedWeight] = field(default_factory=dict)
    _written: dict[Hashable, Any] = field(default_factory=dict)
    # By name of the weight: description of each set of codes -> bytes.
    _sets: dict[str, dict[Hashable, tuple[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._readers = Counter(layer.weight for layer, _, _ in self.found)
        homes: dict[str, set[int]] = {}
        for layer, _, home in self.found:
            homes.setdefault(layer.weight, set()).add(id(home))
        self._nested = {name for name, held in homes.items() if len(held) > 1}

    def is_shared(self, layer: Layer) -> bool:
        """Whether another layer reads the same weight."""
        return self._readers[layer.weight] > 1

    def encoded(
        self,
        layer: Layer,
        tensor: gs.Tensor,
        array: npt.NDArray[Any],
        scheme: Scheme,
        floor: npt.NDArray[np.float32] | None = None,
        half: bool = False,
    ) -> EncodedWeight:
        """`encode_layer`, done once for layers that ask for the same."""
        if not self.is_shared(layer):
            return encode_layer(layer, array, scheme, floor, half)
        bound = None if floor is None else floor.tobytes()
        key = (tensor.name, str(scheme), layer.channel_axis, bound, half)
        if key not in self._plain:
            self._plain[key] = encode_layer(layer, array, scheme, floor, half)
        return self._plain[key]

    def place(
        self,
        layer: Layer,
        home: gs.Graph,
        encoded: EncodedWeight,
        scheme: Scheme,
        form: Form,
        manner: Hashable,
        write: Callable[[gs.Graph, EncodedWeight], Any],
    ) -> Any:
        """What `write` gives for a graph and a weight, or what it gave for an earlier layer.

        form: of the weight. manner: whatever else makes a difference in the file.
        """
        if not self.is_shared(layer):
            return write(home, encoded)
        key = (layer.weight, _digest(encoded), encoded.channel_axis, form.name, manner)
        if key not in self._written:
            stored = form.shared(encoded, scheme)
            self._written[key] = write(self.root if layer.weight in self._nested else home, stored)
            what = f"{scheme} along axis {encoded.channel_axis}"
            self._sets.setdefault(layer.weight, {})[key] = what, layer_bytes(layer, scheme)
        return self._written[key]

    def tell(self, policy: Policy, context: Context) -> None:
        """A note for every weight that is stored more than once now."""
        floats = {
            layer.weight: layer
            for layer, node, _ in self.found
            if policy[layer.name].weights.is_float and weight_index(node) is not None
        }
        for weight, sets in self._sets.items():
            stored = list(sets.values())
            if weight in floats:
                stored.append(("float", floats[weight].weights * 4))
            if len(stored) > 1:
                extra = sum(size for _, size in stored) - max(size for _, size in stored)
                kinds = ", ".join(sorted({what for what, _ in stored}))
                context.note(
                    "info",
                    weight,
                    f"{self._readers[weight]} layers read this weight, which is stored {len(stored)} times "
                    f"({kinds}): about {extra} bytes more than once",
                )
