"""`upgrade`: the one door to another opset. See the package's rules."""

from __future__ import annotations

import onnx
from onnx import inliner
from onnx.helper import find_min_ir_version_for, make_opsetid

from passes.core.base import Context
from passes.core.errors import UnsupportedModelError
from passes.graph.boundary import declare_functions
from passes.graph.light import without_values
from passes.graph.model import Model, normalized
from passes.opset.conversion import (
    ConversionError,
    Walk,
    convert,
    convert_functions,
    name_nodes,
    names_of,
    opset_of,
)
from passes.opset.lowering import Descent
from passes.opset.runtime import newest_runtime_opset
from passes.opset.schemas import newest
from runtime_ops.functions import DOMAIN

__all__ = ["align_functions", "upgrade"]


def upgrade(model: Model, minimum: int, why: str, context: Context) -> Model:
    """The model at opset `minimum` or newer, within what ONNX Runtime quantizes; `why` goes into a note.

    A model that changes remembers it as a rewrite that keeps the function.
    Raises UnsupportedModelError that names the node which cannot be converted.
    """
    made = _upgraded(model, minimum, why, context)
    return model if made is model else made.rewritten("opset upgrade", model, exact=True)


def _upgraded(model: Model, minimum: int, why: str, context: Context) -> Model:
    model = normalized(model)
    limit = newest_runtime_opset()
    if minimum > limit:
        raise UnsupportedModelError(
            f"{model.name}: {why} needs opset {minimum}, and the installed ONNX Runtime quantizes up to "
            f"opset {limit}; choose other schemes, or install a newer onnxruntime"
        )
    if _newest_import(model) > limit:
        model = _lowered(model, limit, context)
    if model.opset() >= minimum:
        return _with_ir(model)
    target = max(minimum, _newest_import(model))
    try:
        proto = _raised(model, target, context)
    except ConversionError as refused:
        raise UnsupportedModelError(
            f"{model.name}: {why} needs opset {minimum}, and the model at opset {model.opset()} cannot be "
            f"converted ({refused}); export it again at the newer opset, or leave what needs it out"
        ) from None
    context.note("info", "", f"opset {model.opset()} upgraded to {target}: {why}")
    return model.with_proto(proto)


def align_functions(proto: onnx.ModelProto) -> None:
    """Bring the model's functions, in place, to the opset of the model, so that they can be inlined.

    Raises ConversionError that names the node which cannot be converted.
    """
    level, names = opset_of(proto), names_of(proto)
    older = [function for function in proto.functions if opset_of(function) < level]
    newer = [function for function in proto.functions if opset_of(function) > level]
    convert_functions(proto, older, Walk(level, names))
    convert_functions(proto, newer, Descent(level, names))


def _newest_import(model: Model) -> int:
    """The newest opset that the model or one of its functions imports."""
    return max(opset_of(holder) for holder in (model.proto, *model.proto.functions))


def _named(model: Model) -> onnx.ModelProto:
    """A copy whose nodes have names, and without the functions of `ai.onnxq`, which are written again."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    name_nodes(proto)
    for index in reversed(range(len(proto.functions))):
        if proto.functions[index].domain == DOMAIN:
            del proto.functions[index]
    return proto


def _raised(model: Model, target: int, context: Context) -> onnx.ModelProto:
    """A copy at opset `target`; its functions are inlined if one of them cannot be converted by itself."""
    proto = _named(model)
    imported = [opset for opset in proto.opset_import if opset.domain]
    least = find_min_ir_version_for([*imported, make_opsetid("", target)], ignore_unknown=True)
    _lift_ir(proto, least)
    try:
        convert(proto, Walk(target, names_of(proto)))
    except ConversionError as refused:
        if not refused.in_function:
            raise
        light = without_values(_named(model))
        proto = inliner.inline_local_functions(light.proto)
        if proto.functions:
            raise
        light.restore(proto)
        _lift_ir(proto, least)
        convert(proto, Walk(target, names_of(proto)))
        context.note("info", "", "model-local functions were inlined, to upgrade the opset")
    declare_functions(proto)
    return proto


def _lowered(model: Model, limit: int, context: Context) -> Model:
    current = _newest_import(model)
    trouble = (
        f"{model.name}: the installed ONNX Runtime quantizes up to opset {limit}, and the model at opset "
        f"{current} cannot be brought down"
    )
    advice = f"export it again at opset {limit} or older, or install a newer onnxruntime"
    if current > newest():
        raise UnsupportedModelError(f"{trouble} (the installed onnx knows up to {newest()}); {advice}")
    proto = _named(model)
    try:
        convert(proto, Descent(limit, names_of(proto)))
    except ConversionError as refused:
        raise UnsupportedModelError(f"{trouble} ({refused}); {advice}") from None
    declare_functions(proto)
    context.note(
        "info",
        "",
        f"opset {current} lowered to {limit}, the newest that the installed ONNX Runtime quantizes",
    )
    return model.with_proto(proto)


def _with_ir(model: Model) -> Model:
    """The model with an IR version that knows the types of its opset."""
    least = find_min_ir_version_for(model.proto.opset_import, ignore_unknown=True)
    if model.proto.ir_version >= least:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _lift_ir(proto, least)
    return model.with_proto(proto)


def _lift_ir(proto: onnx.ModelProto, least: int) -> None:
    """Let the model have that IR version or a newer one.

    Before IR 4 initializers were listed as inputs that no caller could set; from 4 on a caller could.
    """
    if proto.ir_version < 4 <= least:
        fixed = {tensor.name for tensor in proto.graph.initializer}
        for index in reversed(range(len(proto.graph.input))):
            if proto.graph.input[index].name in fixed:
                del proto.graph.input[index]
    proto.ir_version = max(proto.ir_version, least)
