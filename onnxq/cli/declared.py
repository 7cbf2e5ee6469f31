"""Options made from what a configuration declares of its fields: type, default, help, where they are read."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from passes.core.fields import Declared, declared

__all__ = ["declared_options"]

_FIELD = re.compile(r"`(\w+)`")
F = TypeVar("F", bound=Callable[..., Any])


def declared_options(
    kind: type[Any],
    *names: str,
    flags: Mapping[str, str] | None = None,
    readers: Callable[[str], str] = lambda _: "",
) -> Callable[[F], F]:
    """An option for each of these fields of a dataclass, in this order.

    Args:
        flags: field -> option, where that is not the field's name.
        readers: gives what is said of a field in brackets behind its help, before where it is read.
    """
    known, flags = declared(kind), flags or {}

    def decorate(function: F) -> F:
        for name in reversed(names):
            note = ", ".join(filter(None, [readers(name), _where(known[name], flags)]))
            function = _option(known[name], flags.get(name, _flag(name)), note)(function)
        return function

    return decorate


def _option(spec: Declared, flag: str, note: str) -> Callable[[F], F]:
    text = f"{spec.option.help} ({note[0].upper()}{note[1:]}.)" if note else spec.option.help
    if spec.kind is bool:
        return click.option(flag, spec.name, is_flag=True, default=spec.default, help=text)
    choices = typing.get_args(spec.kind) if typing.get_origin(spec.kind) is typing.Literal else ()
    return click.option(
        flag,
        spec.name,
        type=click.Choice(choices) if choices else spec.kind,
        default=spec.default,
        show_default=bool(spec.default),
        help=text,
    )


def _where(spec: Declared, flags: Mapping[str, str]) -> str:
    """Where an option is read, with options in the place of fields."""
    return " and ".join(
        _FIELD.sub(lambda found: flags.get(found[1], _flag(found[1])), str(when))
        for when in spec.option.conditions
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
