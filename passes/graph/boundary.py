"""The boundary to onnx-graphsurgeon: every pass edits a graph that came through here.

Carried across what graphsurgeon drops: metadata_props, doc strings, initializer order for determinism; and
what it cannot hold, such as sparse initializers, empty lists and values that are not plain tensors
(passes/graph/carried.py). Only what cannot even be carried is refused (`GraphError`).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any, cast

import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from passes.core.errors import GraphError, UnsupportedModelError
from passes.graph.carried import free_names, import_proto, mask, put_back, unmasked
from passes.graph.carrying import carry_annotations
from passes.graph.editing import sort_nodes, subgraphs
from passes.graph.external_data import KEPT_BYTES, is_external, tensor_array
from passes.graph.model import Model, every_graph, is_large, normalized
from passes.graph.spilling import spill, spill_array
from passes.graph.tensors import stored_bytes
from runtime_ops.functions import DOMAIN, registered_function

__all__ = [
    "ExternalValues",
    "declare_functions",
    "export_graph",
    "import_graph",
    "losses",
    "node_name",
    "source_model",
]

G_LOGGER.severity = G_LOGGER.ERROR
# Kinds of arrays whose bytes are the values; objects are strings.
_NATIVE = "biuf"


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


class ExternalValues(LazyValues):  # type: ignore[misc]
    """Values that are in a file; graphsurgeon would look for it in the working directory."""

    def load(self) -> npt.NDArray[Any]:
        return tensor_array(self.tensor)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every constant of a graph and of those nested in it, attributes of nodes included."""
    for current, _ in subgraphs(graph):
        held = (value for node in current.nodes for value in node.attrs.values())
        for tensor in (*current.tensors().values(), *held):
            if isinstance(tensor, gs.Constant) and not isinstance(tensor._values, SparseValues):
                yield tensor


def _read_externally(graph: gs.Graph) -> None:
    """Let constants whose values are in files be read by us. The field that says so is the proto's own."""
    for tensor in _constants(graph):
        if isinstance(tensor._values, LazyValues) and is_external(tensor._values.tensor):
            tensor._values = ExternalValues(tensor._values.tensor)
            tensor.data_location = None


def _spill(graph: gs.Graph) -> None:
    """Write large arrays that passes made to a file, so that the export has nothing to copy."""
    for tensor in _constants(graph):
        held = tensor._values
        if not isinstance(held, LazyValues):
            if held.nbytes > KEPT_BYTES and held.dtype.kind in _NATIVE:
                tensor._values = ExternalValues(spill_array(held, tensor.name))
        elif not is_external(held.tensor) and stored_bytes(held.tensor) > KEPT_BYTES:
            tensor._values = ExternalValues(spill(held.tensor))
        tensor.data_location = None


def import_graph(model: Model) -> gs.Graph:
    """An editable graph of the model, every node named.

    Raises GraphError for what cannot be held without loss.
    """
    model = normalized(model)
    try:
        graph = import_proto(model.proto)
    except GraphError as error:
        raise GraphError(f"{model.name}: {error}") from None
    except Exception as error:  # graphsurgeon raises bare exceptions of many kinds
        raise GraphError(f"{model.name}: cannot be opened for editing ({error})") from error
    _name_nodes(graph, "", _all_names(graph), set())
    mask(graph)
    _own_attribute_tensors(graph)
    _read_externally(graph)
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
    sparse = {tensor.values.name for tensor in proto.graph.sparse_initializer}
    inputs = []
    for before in source.graph.input:
        if before.name in written:
            inputs.append(restored(written.pop(before.name)))
        elif before.name in initializers or before.name in sparse:
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
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
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
    if is_large(model.proto):
        _spill(graph)
    with unmasked(graph):
        proto = cast(onnx.ModelProto, gs.export_onnx(graph, do_type_check=False))
    put_back(proto.graph, graph)
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
    if not _lost_to_training(source, proto):
        proto.training_info.extend(source.training_info)
    return model.with_proto(proto)


def _lost_to_training(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """Initializers that the training information sets or reads, and that are there no more."""
    names: set[str] = set()
    for info in before.training_info:
        names.update(entry.key for entry in (*info.initialization_binding, *info.update_binding))
        names |= free_names(info.initialization) | free_names(info.algorithm)
    return names & _initializers(before) - _initializers(after)


def _initializers(proto: onnx.ModelProto) -> set[str]:
    sparse = {tensor.values.name for tensor in proto.graph.sparse_initializer}
    return sparse | {tensor.name for tensor in proto.graph.initializer}


def losses(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """What a caller of the model can no longer do after a rewrite, in sentences."""
    told = []
    # From IR 4 on an initializer that is an input is only a default, which a caller may override.
    kept = {value.name for value in after.graph.input}
    frozen = [value.name for value in before.graph.input if value.name not in kept]
    if frozen and before.ir_version >= 4:
        which = f"input '{frozen[0]}'" + (f" and {len(frozen) - 1} more" if frozen[1:] else "")
        told.append(f"{which}: the default is a constant now; callers cannot set it")
    if before.training_info and not after.training_info:
        lost = _lost_to_training(before, after)
        which = f", which updates '{min(lost)}'," if lost else ""
        told.append(f"the training information{which} was dropped; train the model that this one was made of")
    return told


def declare_functions(proto: onnx.ModelProto) -> None:
    """Bring along the functions of `ai.onnxq` that the model calls, each once, at the model's opset."""
    calls = {
        node.op_type for graph in every_graph(proto.graph) for node in graph.node if node.domain == DOMAIN
    }
    missing = calls - {held.name for held in proto.functions if held.domain == DOMAIN}
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    try:
        proto.functions.extend(registered_function(name, opset) for name in sorted(missing))
    except ValueError as error:
        raise UnsupportedModelError(f"a layer is stored as a bit stream: {error}") from None
    if calls and not any(o.domain == DOMAIN for o in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
