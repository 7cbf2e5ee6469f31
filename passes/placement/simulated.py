"""Activations in GSE, simulated: what a layer reads goes through GSEQuantizeDequantize, in float.

Groups of `block_size` input channels share an exponent, found anew for every input and position: along axis 1
of a convolution's input, along the last axis of a matrix product's. Where that is another one (the weight
stands on the left, or a Gemm reads its input transposed) the layer is left alone, with a note.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from passes.core.base import Context
from passes.formats import format_of
from passes.graph.editing import consumers, replace_uses, unique_name
from passes.graph.inference import Types
from passes.graph.layers import Layer, weight_index
from passes.placement.places import quantized_input
from passes.policy import Scheme
from runtime_ops.functions import DOMAIN

__all__ = ["simulate_input"]


def _rows(layer: Layer, node: gs.Node) -> list[int] | None:
    """Shape in which the function sees the input, [rows, channels, positions]; None where it cannot."""
    if layer.op.startswith("Conv"):
        return [0, 0, -1]
    if weight_index(node) != 1 or node.attrs.get("transA", 0):
        return None
    axis = 1 if layer.op == "Gemm" and node.attrs.get("transB", 0) else -2
    return [-1, layer.weight_shape[axis], 1]


def simulate_input(
    graph: gs.Graph,
    root: gs.Graph,
    layer: Layer,
    node: gs.Node,
    scheme: Scheme,
    types: Types,
    context: Context,
) -> None:
    """Put the node in front of the layer; layers that read the same tensor in the same scheme share it."""
    rows = _rows(layer, node)
    if rows is None:
        reason = "channels of its activations are not on the last axis; its activations stay float"
        context.note("refused", layer.name, reason)
        return
    tensor, reader = quantized_input(node)
    simulation = format_of(scheme).simulation
    assert simulation is not None  # the policy was checked
    op, attributes = simulation.op, simulation.attributes(scheme, rows)
    for other in consumers(tensor):
        if other.op == op and other.attrs == attributes and any(n is other for n in graph.nodes):
            result = other.outputs[0]
            break
    else:
        kind = types.of(tensor)
        name = unique_name(root, f"{tensor.name}_simulated")
        result = gs.Variable(name, tensor.dtype, None if kind is None else list(kind.shape or ()) or None)
        label = unique_name(root, f"{tensor.name}_{op}")
        graph.nodes.append(gs.Node(op, label, attributes, [tensor], [result], domain=DOMAIN))
    replace_uses(graph, tensor, result, only=[reader])
