"""The boundary to onnx-graphsurgeon: every pass edits a graph that came through here.

Carried across what graphsurgeon drops: metadata_props, doc strings, value types other than
plain tensors, initializer order for determinism. What it cannot hold is refused (`GraphError`)
so that the model is left untouched.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, cast

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from passes.carrying import carry_annotations
from passes.editing import sort_nodes
from passes.errors import GraphError, UnsupportedModelError
from passes.model import Model, every_graph, normalized
from runtime_ops.functions import DOMAIN, function

__all__ = ["declare_functions", "export_graph", "import_graph", "node_name", "source_model"]

G_LOGGER.severity = G_LOGGER.ERROR

_HELD_ATTRIBUTES = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.GRAPH,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRINGS,
}


def _refuse_unheld(model: Model) -> None:
    """Raise GraphError for what graphsurgeon 0.6 would lose or corrupt."""
    for graph in every_graph(model.proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.WhichOneof("value")
            element = value.type.sequence_type.elem_type
            nested = kind == "sequence_type" and not element.HasField("tensor_type")
            if kind not in (None, "tensor_type", "sequence_type") or nested:
                raise GraphError(f"{model.name}: value '{value.name}' is a {kind}; left untouched")
        if graph.sparse_initializer:
            raise GraphError(f"{model.name}: sparse initializers are left untouched")
        for node in graph.node:
            if getattr(node, "overload", ""):
                raise GraphError(f"{model.name}: node '{node.name}' calls an overload; left untouched")
            for attribute in node.attribute:
                empty = not (attribute.floats or attribute.ints or attribute.strings)
                listed = attribute.type in (
                    onnx.AttributeProto.FLOATS,
                    onnx.AttributeProto.INTS,
                    onnx.AttributeProto.STRINGS,
                )
                if attribute.type not in _HELD_ATTRIBUTES or (listed and empty):
                    raise GraphError(
                        f"{model.name}: node '{node.name}' ({node.op_type}) has an attribute "
                        f"'{attribute.name}' that cannot be edited safely; left untouched"
                    )
    if model.proto.training_info:
        raise GraphError(f"{model.name}: training information is left untouched")


def _all_names(graph: gs.Graph) -> set[str]:
    names = {node.name for node in graph.nodes if node.name}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= _all_names(value)
    return names


def node_name(own: str, made: str, given: Set[str], seen: Set[str]) -> str:
    """A node's unique name: its own, or the made one where it has none; numbered where that is taken.

    given: names that nodes of the model have. seen: names of the nodes before this one.
    """
    name = own or made
    if name in seen or (not own and name in given):
        serial = 1
        while f"{name}_{serial}" in seen or f"{name}_{serial}" in given:
            serial += 1
        name = f"{name}_{serial}"
    return name


def _name_nodes(graph: gs.Graph, prefix: str, given: set[str], seen: set[str]) -> None:
    """Give every node, subgraphs included, a unique name: unnamed ones OP_INDEX, repeated ones a suffix.

    Unique over all graphs because graphsurgeon tells nodes apart by name: two branches of an If with
    equal names would make it unlink the wrong one.
    """
    for index, node in enumerate(graph.nodes):
        node.name = name = node_name(node.name, f"{prefix}{node.op}_{index}", given, seen)
        seen.add(name)
        for key, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                _name_nodes(value, f"{name}/{key}/", given, seen)


def _own_attribute_tensors(graph: gs.Graph) -> None:
    """Give tensor attributes protos of their own: the export writes names into them."""
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                _own_attribute_tensors(value)
            elif isinstance(value, gs.Constant) and isinstance(value._values, LazyValues):
                own = onnx.TensorProto()
                own.CopyFrom(value._values.tensor)
                value._values = LazyValues(own)


def import_graph(model: Model) -> gs.Graph:
    """An editable graph of the model, every node named.

    Raises GraphError for what cannot be held without loss.
    """
    model = normalized(model)
    _refuse_unheld(model)
    try:
        graph = gs.import_onnx(model.proto)
    except Exception as error:  # graphsurgeon raises bare exceptions of many kinds
        raise GraphError(f"{model.name}: cannot be opened for editing ({error}); left untouched") from error
    # gs shares the proto's opset list; an edit must not write through to the original model.
    graph.import_domains = [onnx.helper.make_opsetid(o.domain, o.version) for o in model.proto.opset_import]
    _name_nodes(graph, "", _all_names(graph), set())
    _own_attribute_tensors(graph)
    graph.__dict__["_onnxq_source"] = model
    return graph


def source_model(graph: gs.Graph) -> Model:
    """The model that the graph was imported from, as it was then."""
    return cast(Model, graph.__dict__["_onnxq_source"])


def _same_type(tensor: Any, value: onnx.ValueInfoProto) -> bool:
    """Whether the graph's input or output still has the type that `value` declares."""
    before = OnnxImporter.import_tensor(value)
    return bool(tensor.dtype == before.dtype and tensor.shape == before.shape)


def _restore_signature(proto: onnx.ModelProto, graph: gs.Graph, source: onnx.ModelProto) -> None:
    """Graph inputs and outputs as they were declared: order, defaults, symbols, doc strings.

    An input with a default value (an initializer of the same name) stays in its place while that
    initializer is used. Below IR 4 the checker wants every initializer among the inputs.
    """
    held = {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs)}
    by_name = {tensor.name: tensor for tensor in held.values() if isinstance(tensor, gs.Variable)}
    declared = {value.name: value for value in (*source.graph.input, *source.graph.output)}

    def restored(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        before, tensor = declared.get(value.name), by_name.get(value.name)
        return before if before is not None and tensor is not None and _same_type(tensor, before) else value

    written = {value.name: value for value in proto.graph.input}
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    inputs = []
    for before in source.graph.input:
        if before.name in written:
            inputs.append(restored(written.pop(before.name)))
        elif before.name in initializers:
            inputs.append(before)
    inputs.extend(written.values())
    if proto.ir_version < 4:
        listed = {value.name for value in inputs}
        inputs.extend(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            for name, tensor in initializers.items()
            if name not in listed
        )
    outputs = [restored(value) for value in proto.graph.output]
    del proto.graph.input[:], proto.graph.output[:]
    proto.graph.input.extend(inputs)
    proto.graph.output.extend(outputs)


def _strip_outer(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Remove from nested graphs what graphsurgeon copies into them of the graphs around them."""
    own = outer | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    own |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                nested = attribute.g
                for field in (nested.initializer, nested.value_info):
                    kept = [entry for entry in field if entry.name not in own]
                    if len(kept) < len(field):
                        kept = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
                        del field[:]
                        field.extend(kept)
                _strip_outer(nested, own)


def _share_nested(graph: onnx.GraphProto) -> None:
    """Move to the main graph the initializers that several nested graphs hold alike.

    graphsurgeon writes a constant into every graph that reads it, where the graphs around those do not.
    """
    held: dict[str, list[onnx.GraphProto]] = {}
    written = {name for nested in every_graph(graph) for node in nested.node for name in node.output}
    written |= {value.name for nested in every_graph(graph) for value in nested.input}
    for nested in every_graph(graph):
        for tensor in nested.initializer:
            held.setdefault(tensor.name, []).append(nested)
    for name, homes in held.items():
        if len(homes) < 2 or name in written or any(home is graph for home in homes):
            continue
        copies = [tensor for home in homes for tensor in home.initializer if tensor.name == name]
        first = copies[0].SerializeToString()
        if any(copy.SerializeToString() != first for copy in copies[1:]):
            continue
        graph.initializer.append(onnx.TensorProto.FromString(first))
        for home in homes:
            index = next(i for i, tensor in enumerate(home.initializer) if tensor.name == name)
            del home.initializer[index]


def export_graph(graph: gs.Graph, model: Model) -> Model:
    """The edited graph as a model again, with everything carried over from `model`."""
    graph.cleanup(recurse_functions=False)
    sort_nodes(graph)
    proto = cast(onnx.ModelProto, gs.export_onnx(graph, do_type_check=False))
    source = normalized(model).proto
    proto.ir_version = source.ir_version
    proto.producer_name, proto.producer_version = source.producer_name, source.producer_version
    proto.domain, proto.model_version = source.domain, source.model_version
    proto.doc_string = source.doc_string
    proto.metadata_props.extend(source.metadata_props)
    if hasattr(source, "configuration"):
        proto.configuration.extend(source.configuration)
    _restore_signature(proto, graph, source)
    _strip_outer(proto.graph, set())
    if proto.ir_version >= 4:
        _share_nested(proto.graph)
    carry_annotations(proto.graph, source.graph)
    del proto.functions[:]
    proto.functions.extend(source.functions)
    declare_functions(proto)
    return model.with_proto(proto)


def declare_functions(proto: onnx.ModelProto) -> None:
    """Bring along the functions of `ai.onnxq` that the model calls, each once, at the model's opset."""
    calls = {
        node.op_type for graph in every_graph(proto.graph) for node in graph.node if node.domain == DOMAIN
    }
    missing = calls - {held.name for held in proto.functions if held.domain == DOMAIN}
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    try:
        proto.functions.extend(function(name, opset) for name in sorted(missing))
    except ValueError as error:
        raise UnsupportedModelError(f"a layer is stored as a bit stream: {error}") from None
    if calls and not any(o.domain == DOMAIN for o in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
