"""What the fields of a frozen dataclass may hold, read from their annotations and checked when it is made.

    damping: Annotated[float, Option("How far the data are trusted.", above=0)] = 1.0
    site: Literal["output", "input"] = "output"

Messages name the field in backticks; the command line writes its own option in the place of it.
"""

from __future__ import annotations

import difflib
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from passes.core.errors import UserError

__all__ = ["Declared", "Option", "When", "check_fields", "declared", "from_texts", "has_words", "to_text"]

_SHOWN = 60


@dataclass(frozen=True, init=False)
class When:
    """Where an option is read: another option has one of these values, is given, or is absent.

    Attributes:
        field: the other option, or several as in `data|calibration_data`, of which one does.
        values: patterns of its values, or of one of several; none means any.
        absent: whether it must not be given, or not have these values.
    """

    field: str
    values: tuple[str, ...]
    absent: bool

    def __init__(self, field: str, *values: str, absent: bool = False) -> None:
        for name, value in (("field", field), ("values", values), ("absent", absent)):
            object.__setattr__(self, name, value)

    def holds(self, value: Any) -> bool:
        """Whether the option is read where the other one has this value."""
        if not self.values:
            return bool(value) != self.absent
        several = value if isinstance(value, list | tuple) else [value]
        parts = [part.strip() for each in several for part in str(each).split(",")]
        met = any(fnmatchcase(part, pattern) for part in parts for pattern in self.values)
        return met != self.absent

    def __str__(self) -> str:
        """What the option goes with, as in "with `rounding` gptq or adaround"."""
        words = list(self.values)
        values = " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
        fields = " or ".join(f"`{name}`" for name in self.fields)
        return f"{'without' if self.absent else 'with'} {fields} {values}".rstrip()

    @property
    def fields(self) -> tuple[str, ...]:
        """The other options, one by one."""
        return tuple(self.field.split("|"))


@dataclass(frozen=True)
class Option:
    """What a field says of itself beside its type.

    Attributes:
        help: one sentence for the command line.
        least, most: the smallest and the largest number that is allowed.
        above: numbers must be larger than this one.
        when: where it is read; all of several. Elsewhere nothing reads it.
    """

    help: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    when: When | tuple[When, ...] = ()

    @property
    def conditions(self) -> tuple[When, ...]:
        """Where it is read, as a tuple."""
        return (self.when,) if isinstance(self.when, When) else self.when

    def problem(self, value: float) -> str:
        """What is wrong with a number; empty where nothing is."""
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:g}"
        low, high = self.least, self.most
        if (low is None or value >= low) and (high is None or value <= high):
            return ""
        if low is not None and high is not None:
            return f"must be from {low:g} to {high:g}"
        if low == 0:
            return "must not be negative"
        return f"must be {low:g} or more" if low is not None else f"must be {high:g} or less"


@dataclass(frozen=True)
class Declared:
    """A field as its class declares it."""

    name: str
    kind: Any
    default: Any
    option: Option


def declared(kind: Any) -> Mapping[str, Declared]:
    """Name -> declaration of every field of a dataclass that is given when it is made."""
    return _declared(kind)


@functools.cache
def _declared(kind: Any) -> Mapping[str, Declared]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for spec in fields(kind):
        if not spec.init:
            continue
        hint, option = hints[spec.name], Option()
        if typing.get_origin(hint) is Annotated:
            hint, *notes = typing.get_args(hint)
            option = next((note for note in notes if isinstance(note, Option)), option)
        found[spec.name] = Declared(spec.name, hint, spec.default, option)
    return found


def check_fields(held: object, what: str = "", error: type[UserError] = UserError) -> None:
    """Raise `error` for the first field whose value its annotation does not allow. what: names the holder."""
    for name, field in declared(type(held)).items():
        problem = _problem(getattr(held, name), field)
        if problem:
            raise error(f"{what}: {problem}" if what else problem)


def _problem(value: Any, field: Declared) -> str:
    origin, shown = typing.get_origin(field.kind), f"`{field.name}` {_text(value)}"
    if origin is Literal:
        choices = typing.get_args(field.kind)
        return "" if _among(value, choices) else f"{shown}: is not one of {_near(value, choices)}"
    if origin is tuple:
        return _sequence_problem(value, field, shown)
    if field.kind is bool:
        return "" if isinstance(value, bool) else f"{shown}: must be True or False"
    if field.kind in (int, float):
        kinds = int if field.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return f"{shown}: must be a {'whole ' if field.kind is int else ''}number"
        problem = field.option.problem(value)
        return f"{shown}: {problem}" if problem else ""
    if field.kind is str and not isinstance(value, str):
        return f"{shown}: must be text"
    return ""


def _sequence_problem(value: Any, field: Declared, shown: str) -> str:
    item = next(iter(typing.get_args(field.kind)), Any)
    if isinstance(value, str) or not isinstance(value, tuple | list):
        return f"{shown}: must be a tuple, as in ({_text(value)!r},)"
    for each in value:
        problem = _problem(each, Declared(field.name, item, None, field.option))
        if problem:
            return problem
    return ""


def _among(value: Any, choices: tuple[Any, ...]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _near(value: Any, choices: tuple[Any, ...]) -> str:
    known = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(value), known, n=1)
    return ", ".join(known) + (f"; did you mean {near[0]}?" if near else "")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def from_texts(kind: type[Any], texts: Mapping[str, str], what: str) -> dict[str, Any]:
    """Values of a dataclass's fields from words, as in a recipe or on the command line.

    Raises:
        UserError: there is no such field, or the word has not the field's type.
    """
    known, values = declared(kind), {}
    for name, word in texts.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"{what}: has no option '{name}'; {hint}")
        values[name] = _converted(word, known[name].kind, f"{what}: `{name}` {word}")
    return values


def _converted(word: str, kind: Any, shown: str) -> Any:
    if typing.get_origin(kind) is tuple:
        item = next(iter(typing.get_args(kind)), str)
        return tuple(_converted(part, item, shown) for part in word.split(",") if part)
    if kind is bool:
        if word not in ("true", "false"):
            raise UserError(f"{shown}: must be true or false")
        return word == "true"
    if kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            raise UserError(f"{shown}: must be a {'whole ' if kind is int else ''}number") from None
    return word


def to_text(value: Any) -> str:
    """The inverse of what `from_texts` does to one word."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(to_text(each) for each in value)
    return repr(value) if isinstance(value, float) else str(value)


def has_words(kind: type[Any], *names: str) -> bool:
    """Whether a class says each of these of itself, in words."""
    return all(isinstance(getattr(kind, name, None), str) and getattr(kind, name) for name in names)
