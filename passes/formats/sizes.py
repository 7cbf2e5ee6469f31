"""What a layer's weight takes in the file, before anything is encoded.

The form in which it is stored (passes/formats/) knows its bytes exactly. Node, names and shared tables are
counted flat: they depend on names, not on numbers.
"""

from __future__ import annotations

from passes.formats import Form, Scheme, format_of
from passes.formats.bitstream import NODE_BYTES
from passes.formats.form import Geometry
from passes.graph.layers import Layer

__all__ = ["layer_bytes", "pays"]


def layer_bytes(layer: Layer, scheme: Scheme, *, itemsize: int = 4, integer_activations: bool = False) -> int:
    """Bytes of the layer's weight in that scheme. itemsize: of the float weight."""
    if not pays(layer, scheme, itemsize=itemsize, integer_activations=integer_activations):
        return layer.weights * itemsize
    form = format_of(scheme).form(scheme, integer_activations)
    return form.stored_bytes(_geometry(layer, scheme), scheme, itemsize) + NODE_BYTES


def pays(
    layer: Layer,
    scheme: Scheme,
    *,
    itemsize: int = 4,
    integer_activations: bool = False,
    form: Form | None = None,
) -> bool:
    """Whether the weight takes less than its floats do.

    With channels of a single weight, or rows that must be padded to whole units, it may not. Weights that
    integer kernels read are quantized for their sake. form: the one that was chosen already.
    """
    if scheme.is_float:
        return False
    form = form or format_of(scheme).form(scheme, integer_activations)
    if integer_activations and form.gives == "codes":
        return True
    geometry = _geometry(layer, scheme)
    stored = form.stored_bytes(geometry, scheme, itemsize) + form.extra_bytes(geometry, scheme)
    return stored <= layer.weights * itemsize


def _geometry(layer: Layer, scheme: Scheme) -> Geometry:
    return Geometry.of(layer.weights, layer.weight_shape[layer.channel_axis], scheme)
