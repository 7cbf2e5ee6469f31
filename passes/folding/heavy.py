"""Constant nodes of models over 2 GB, worked out one by one.

graphsurgeon works out all constant nodes of a graph at once, in a model that holds everything they read.
Here each node that reads values from a file is run alone, with what it reads as its feed, and what it gives
goes to a file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from passes.graph.boundary import ExternalValues
from passes.graph.editing import is_constant, values, values_type
from passes.graph.external_data import is_external
from passes.graph.spilling import spill_array

__all__ = ["fold_heavy", "reads_file"]


def reads_file(node: gs.Node) -> bool:
    """Whether any constant that the node reads is stored outside of the model."""
    return any(
        isinstance(tensor, gs.Constant)
        and isinstance(tensor._values, LazyValues)
        and is_external(tensor._values.tensor)
        for tensor in node.inputs
    )


def fold_heavy(graph: gs.Graph, nodes: Sequence[gs.Node]) -> bool:
    """Replace the results of those nodes that read constants alone, some of a file; True if any could be.

    nodes: in topological order.
    A node stays where its types are not numpy's own or ONNX Runtime cannot run it.
    """
    folded = [node for node in nodes if reads_file(node) and _fold(graph, node)]
    if folded:
        gone = {id(node) for node in folded}
        graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    return bool(folded)


def _fold(graph: gs.Graph, node: gs.Node) -> bool:
    read = {tensor.name: tensor for tensor in node.inputs if not tensor.is_empty()}
    if not all(is_constant(tensor) for tensor in read.values()):
        return False
    native = all(values_type(tensor).kind in "biuf" for tensor in read.values())
    if not native or len(node.outputs) != 1:
        return False
    result = _run(graph, node, read)
    if result is None:
        return False
    output = node.outputs[0]
    output.inputs.clear()
    output.to_constant(ExternalValues(spill_array(result, output.name)))
    return True


def _run(graph: gs.Graph, node: gs.Node, read: dict[str, Any]) -> Any:
    """What the node gives for its constant inputs; None where ONNX Runtime has no kernel for it."""
    import onnxruntime as ort

    inputs = [
        gs.Variable(name, values_type(tensor), [int(size) for size in values(tensor).shape])
        for name, tensor in read.items()
    ]
    by_name = {variable.name: variable for variable in inputs}
    own = [by_name.get(tensor.name, gs.Variable.empty()) for tensor in node.inputs]
    alone = gs.Node(node.op, node.name, dict(node.attrs), own, [gs.Variable("result")], domain=node.domain)
    model = gs.export_onnx(
        gs.Graph([alone], inputs, alone.outputs, opset=graph.opset, import_domains=graph.import_domains),
        do_type_check=False,
        ir_version=min(graph.ir_version or 8, onnx.IR_VERSION),
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    feed = {name: values(tensor) for name, tensor in read.items()}
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feed)[0]
    except (RuntimeError, ValueError):
        return None
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return None
