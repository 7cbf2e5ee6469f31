"""Opset upgrades, told and never silent: the ONNX version converter behind one function."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner, version_converter

from passes.base import Context
from passes.editing import subgraphs
from passes.errors import UnsupportedModelError
from passes.graph import declare_functions, import_graph
from passes.light import without_values
from passes.model import Model
from runtime_ops.functions import DOMAIN

__all__ = ["upgrade"]

_REFUSALS = (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


def _named(model: Model) -> onnx.ModelProto:
    """A copy whose nodes bear the names that passes know them by: the converter adds nodes, so that a name
    made from a position would mean another node afterwards."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    names = {path: [node.name for node in graph.nodes] for graph, path in subgraphs(import_graph(model))}
    _set_names(proto.graph.node, names, "")
    return proto


def _set_names(nodes: Iterable[onnx.NodeProto], names: dict[str, list[str]], prefix: str) -> None:
    for node, name in zip(nodes, names[prefix], strict=True):
        node.name = name
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _set_names(attribute.g.node, names, f"{prefix}{name}/{attribute.name}/")


def upgrade(model: Model, minimum: int, why: str, context: Context) -> Model:
    """The model at opset `minimum` or newer, with a note that says why.

    Raises UnsupportedModelError when the converter cannot take it there.
    """
    current = model.opset()
    if current >= minimum:
        return _with_ir(model)
    try:
        light = without_values(_named(model))
        proto = light.proto
        if all(held.domain == DOMAIN for held in proto.functions):
            del proto.functions[:]  # ours are written anew below, at the new opset
        if proto.functions:
            # A function must import the opset of its model, and the converter drops functions.
            proto = inliner.inline_local_functions(proto)
            context.note("info", "", "model-local functions were inlined, to upgrade the opset")
        converted = version_converter.convert_version(proto, minimum)
    except _REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{model.name}: {why} needs opset {minimum}, and the model at opset {current} cannot be "
            f"converted ({reason}); export it again at the newer opset"
        ) from None
    light.restore(converted)
    declare_functions(converted)
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.proto.metadata_props)
    context.note("info", "", f"opset {current} upgraded to {minimum}: {why}")
    return _with_ir(model.with_proto(converted))


def _with_ir(model: Model) -> Model:
    """The model with an IR version that knows the types of its opset."""
    least = onnx.helper.find_min_ir_version_for(model.proto.opset_import, ignore_unknown=True)
    if model.proto.ir_version >= least:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.ir_version = least
    return model.with_proto(proto)
