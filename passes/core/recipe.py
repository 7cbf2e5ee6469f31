"""The text form of passes: `smooth{site=output layers=depthwise}`, one a line or joined by `|`.

A value is a bare word, or a double-quoted string where it holds spaces, braces or quotes.
`#` starts a comment. Fields left at their default are not written.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from pathlib import Path

from passes.core.base import BARE_WORD, Pass, Sequential, format_pass, pass_class, pass_names
from passes.core.errors import RecipeError

__all__ = ["format_pass", "load_recipe", "parse_recipe"]

_TOKEN = re.compile(r'\s+|#[^\n]*|"(?:[^"\\]|\\.)*"|[{}|=]|[^\s{}|"#=]+')


def _tokens(text: str, where: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise RecipeError(f"{where}: line {line}: a quote is opened and never closed")
        position = match.end()
        token = match.group()
        if not token.isspace() and not token.startswith("#"):
            tokens.append(token)
    return tokens


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def _convert(text: str, kind: object, where: str) -> object:
    """A recipe word as the type of the field it is for."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return tuple(part for part in text.split(",") if part)
    if origin is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        if text not in choices:
            raise RecipeError(f"{where} is '{text}'; it must be one of {', '.join(choices)}")
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise RecipeError(f"{where} is '{text}'; it must be true or false")
        return text == "true"
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise RecipeError(f"{where} is '{text}'; it must be a number") from None
    return text


def _build(name: str, options: dict[str, str], where: str) -> Pass:
    cls = pass_class(name)
    if cls is None:
        raise RecipeError(f"{where}: unknown pass '{name}'; {_near(name, pass_names())}")
    kinds = typing.get_type_hints(cls)
    fields = [spec.name for spec in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments: dict[str, object] = {}
    for key, text in options.items():
        if key not in fields:
            known = _near(key, fields) if fields else "it takes none"
            raise RecipeError(f"{where}: pass '{name}' has no option '{key}'; {known}")
        arguments[key] = _convert(text, kinds[key], f"{where}: option '{key}' of pass '{name}'")
    try:
        return cls(**arguments)
    except TypeError:
        missing = [
            spec.name
            for spec in dataclasses.fields(cls)  # type: ignore[arg-type]
            if spec.default is dataclasses.MISSING and spec.name not in options
        ]
        raise RecipeError(f"{where}: pass '{name}' needs the option {', '.join(missing)}") from None


def parse_recipe(text: str, where: str = "recipe") -> Sequential:
    """Passes from their text form. Raises RecipeError naming the unknown pass, option or value."""
    tokens = _tokens(text, where)
    members: list[Pass] = []
    index = 0
    while index < len(tokens):
        name = tokens[index]
        index += 1
        if name == "|":
            continue
        if not BARE_WORD.fullmatch(name):
            raise RecipeError(f"{where}: expected the name of a pass, found '{name}'")
        options: dict[str, str] = {}
        if index < len(tokens) and tokens[index] == "{":
            index += 1
            while index < len(tokens) and tokens[index] != "}":
                triple = tokens[index : index + 3]
                if len(triple) < 3 or triple[1] != "=" or triple[2] in ("{", "}", "|", "="):
                    raise RecipeError(f"{where}: pass '{name}': expected option=value at '{tokens[index]}'")
                value = triple[2]
                if value.endswith(","):
                    raise RecipeError(
                        f"{where}: pass '{name}': options stand behind spaces, not commas; take the comma "
                        f"off '{triple[0]}={value}'"
                    )
                if value.startswith('"'):
                    value = re.sub(r"\\(.)", r"\1", value[1:-1])
                options[triple[0]] = value
                index += 3
            if index == len(tokens):
                raise RecipeError(f"{where}: pass '{name}': the brace is never closed")
            index += 1
        members.append(_build(name, options, where))
    if not members:
        raise RecipeError(f"{where}: holds no pass; known: {', '.join(pass_names())}")
    return Sequential(tuple(members))


def load_recipe(spec: str) -> Sequential:
    """A recipe from a file, or from the text itself where no such file exists."""
    path = Path(spec)
    try:
        if path.is_file():
            return parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        pass  # a long recipe text is no legal file name
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not a text file; a recipe is a list of passes") from None
    if path.suffix and "{" not in spec and "|" not in spec:
        raise RecipeError(f"{spec}: no such recipe file")
    return parse_recipe(spec)
