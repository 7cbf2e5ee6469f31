"""What a JSON document that anybody may have written must look like, checked in one place.

A shape is a function that raises ValueError for a value that does not have it; the error says where in the
document the value is. Shapes are put together: `record(name=text, sizes=each(count))`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = [
    "Shape",
    "anything",
    "count",
    "each",
    "flag",
    "integer",
    "number",
    "one_of",
    "optional",
    "plain_name",
    "real",
    "record",
    "row",
    "table",
    "text",
]

Shape = Callable[[Any, str], None]
_MOST = 2**62
_SHOWN = 40
# Without separators, so that a name inside a folder stays there, and never one that begins with a dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _refuse(value: Any, where: str, wanted: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    raise ValueError(f"{where or 'it'} is {shown}, not {wanted}")


def anything(value: Any, where: str) -> None:
    """Any JSON value."""


def text(value: Any, where: str) -> None:
    """A text."""
    if not isinstance(value, str):
        _refuse(value, where, "a text")


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        _refuse(value, where, "true or false")


def count(value: Any, where: str) -> None:
    """A whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        _refuse(value, where, "a whole number from 0 on")


def integer(value: Any, where: str) -> None:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not abs(value) < _MOST:
        _refuse(value, where, "a whole number")


def number(value: Any, where: str) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        _refuse(value, where, "a finite number")


def real(value: Any, where: str) -> None:
    """A number, or the text of one: JSON has no infinity and no NaN."""
    if not isinstance(value, str):
        number(value, where)
        return
    try:
        float(value)
    except ValueError:
        _refuse(value, where, "a number")


def plain_name(value: Any, where: str) -> None:
    """A name that can be a file's: letters, digits, `.`, `_` and `-`."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _refuse(value, where, "a plain name")


def one_of(*allowed: Any) -> Shape:
    """One of these values."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str | int) or value not in allowed:
            _refuse(value, where, f"one of {', '.join(map(str, allowed))}")

    return check


def optional(shape: Shape) -> Shape:
    """That shape, or null."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def each(shape: Shape) -> Shape:
    """A list of that shape."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple):
            _refuse(value, where, "a list")
        for index, item in enumerate(value):
            shape(item, f"{where}[{index}]")

    return check


def row(*shapes: Shape) -> Shape:
    """A list with one value of each of these shapes."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(shapes):
            _refuse(value, where, f"a list of {len(shapes)}")
        for index, (item, shape) in enumerate(zip(value, shapes, strict=True)):
            shape(item, f"{where}[{index}]")

    return check


def table(shape: Shape) -> Shape:
    """An object whose values, under any key, have that shape."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(value, where, "an object")
        for key, item in value.items():
            shape(item, f"{where}.{key[:_SHOWN]}".lstrip("."))

    return check


def record(
    required: dict[str, Shape], more: dict[str, Shape] | None = None, *, closed: bool = False
) -> Shape:
    """An object with these fields; `more` may be missing, and others are refused where it is `closed`."""
    more = more or {}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(value, where, "an object")
        missing = next((name for name in required if name not in value), None)
        if missing is not None:
            raise ValueError(f"{where or 'it'} has no '{missing}'")
        for name, item in value.items():
            shape = required.get(name) or more.get(name)
            if shape is not None:
                shape(item, f"{where}.{name}".lstrip("."))
            elif closed:
                raise ValueError(f"{where or 'it'} has unknown field {name[:_SHOWN]!r}")

    return check
