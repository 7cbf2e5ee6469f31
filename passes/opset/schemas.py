"""onnx's schemas of an operator: which versions there are, and what a node loses from one to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import onnx
from onnx import defs
from onnx.helper import get_attribute_value

__all__ = ["STANDARD", "Element", "drop_defaults", "is_operator", "lost", "newest", "transitions"]

STANDARD = ("", "ai.onnx")
# Name of a value -> its element type (onnx.TensorProto.DataType), None where it is unknown.
Element = Callable[[str], int | None]


def newest() -> int:
    """The newest opset that the installed onnx knows."""
    return int(defs.onnx_opset_version())


@cache
def _histories() -> dict[str, list[defs.OpSchema]]:
    histories: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain in STANDARD:
            histories.setdefault(schema.name, []).append(schema)
    for schemas in histories.values():
        schemas.sort(key=lambda schema: schema.since_version)
    return histories


def is_operator(op: str, opset: int) -> bool:
    """Whether ONNX defines the operator at that opset (deprecated ones included)."""
    return any(schema.since_version <= opset for schema in _histories().get(op, ()))


def transitions(op: str, low: int, high: int) -> list[tuple[defs.OpSchema, defs.OpSchema]]:
    """(older, newer) schema for each change of the operator above opset `low`, up to `high`, oldest first."""
    history = _histories().get(op, [])
    return [(older, newer) for older, newer in pairwise(history) if low < newer.since_version <= high]


def _default(schema: defs.OpSchema, name: str) -> bytes:
    return bytes(schema.attributes[name].default_value.SerializeToString(deterministic=True))


def _attributes(node: onnx.NodeProto, before: defs.OpSchema, after: defs.OpSchema) -> Iterator[str]:
    present = {attribute.name for attribute in node.attribute}
    for name in sorted(present & before.attributes.keys()):
        if name not in after.attributes or after.attributes[name].type != before.attributes[name].type:
            yield f"it has an attribute '{name}'"
    for name, attribute in after.attributes.items():
        if name not in present and attribute.required:
            yield f"it lacks the attribute '{name}'"
        elif (
            name not in present
            and name in before.attributes
            and _default(before, name) != _default(after, name)
        ):
            yield f"the default of '{name}' differs"


def drop_defaults(node: onnx.NodeProto, before: defs.OpSchema, after: defs.OpSchema) -> None:
    """Remove attributes that `after` does not have where they say what `before` takes for granted."""
    for index in reversed(range(len(node.attribute))):
        name = node.attribute[index].name
        if name in before.attributes and name not in after.attributes:
            default = before.attributes[name].default_value
            if default.type and get_attribute_value(default) == get_attribute_value(node.attribute[index]):
                del node.attribute[index]


def _count(names: list[str]) -> int:
    """Number of inputs or outputs without empty ones at the end."""
    return max((index + 1 for index, name in enumerate(names) if name), default=0)


def _allowed(schema: defs.OpSchema, parameter: defs.OpSchema.FormalParameter) -> set[str]:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == parameter.type_str:
            return set(constraint.allowed_type_strs)
    return {parameter.type_str}


def _type_text(element: int) -> str:
    return f"tensor({onnx.TensorProto.DataType.Name(element).lower()})"


def _types(
    names: list[str],
    before: tuple[defs.OpSchema, list[defs.OpSchema.FormalParameter]],
    after: tuple[defs.OpSchema, list[defs.OpSchema.FormalParameter]],
    element: Element,
) -> Iterator[str]:
    for name, old, new in zip(names, before[1], after[1], strict=False):
        gone = _allowed(before[0], old) - _allowed(after[0], new)
        known = element(name) if name and gone else None
        if known is not None and _type_text(known) in gone:
            yield f"'{name}' is a {_type_text(known)}"


def lost(node: onnx.NodeProto, before: defs.OpSchema, after: defs.OpSchema, element: Element) -> str:
    """Why the node, valid under the schema `before`, is not under `after`; empty where it is.

    Works in both directions. A value of unknown type is taken to be allowed.
    """
    if after.deprecated:
        return "it is deprecated there"
    inputs, outputs = list(node.input), list(node.output)
    if not after.min_input <= _count(inputs) <= after.max_input:
        return f"it has {_count(inputs)} inputs"
    if not after.min_output <= _count(outputs) <= after.max_output:
        return f"it has {_count(outputs)} outputs"
    reasons = [
        *_attributes(node, before, after),
        *_types(inputs, (before, list(before.inputs)), (after, list(after.inputs)), element),
        *_types(outputs, (before, list(before.outputs)), (after, list(after.outputs)), element),
    ]
    return reasons[0] if reasons else ""
