"""The one reader of JSON from outside: whatever is wrong with it becomes a sentence.

Python's own reader has five ways to fail (not JSON, not UTF-8, nested too deeply, a number of too many
digits, a constant that JSON lacks) and takes a key that is given twice without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from passes.core.errors import InvalidModelError, UserError
from passes.graph.model import Model

__all__ = ["parse_json", "read_json", "stored_texts"]

T = TypeVar("T", list[str], dict[str, str])

_LONGEST_NUMBER = 400


def parse_json(text: str | bytes, where: str, error: type[UserError] = UserError, kind: str = "") -> Any:
    """The value that a JSON text holds.

    Args:
        where: what the text is called in messages, a file's path usually.
        error: class of the error.
        kind: what the text should be, as in "a report"; for messages that say that it is not.

    Raises:
        UserError: of the class `error`, one sentence that begins with `where`.
    """
    try:
        # As a text, since json would take bytes in UTF-16 too.
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, **_HOOKS)
    except _PartError as problem:
        reason = str(problem)
    except json.JSONDecodeError as problem:
        reason = f"is not JSON ({problem.msg}, line {problem.lineno})"
    except UnicodeDecodeError:
        reason = "is not a text file in UTF-8"
    except RecursionError:
        reason = "is not JSON that can be read (nested too deeply)"
    raise error(f"{where}: is not {kind}: it {reason}" if kind else f"{where}: {reason}") from None


def read_json(path: str | Path, what: str, error: type[UserError] = UserError, kind: str = "") -> Any:
    """The value in a JSON file.

    Args:
        what: what the file should be, as in "the policy"; for the message about one that cannot be opened.
        error: class of the error.
        kind: as in `parse_json`.

    Raises:
        UserError: of the class `error`, one sentence that begins with the path.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise error(f"{path}: {what} cannot be read ({problem.strerror or problem})") from None
    except ValueError:  # a NUL in the path
        raise error(f"{path}: {what} cannot be read (no such file)") from None
    return parse_json(data, str(path), error, kind)


class _PartError(ValueError):
    """What is wrong with a part of the text."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _PartError(f"gives '{repeated[:80]}' twice; keep one of them")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise _PartError(f"holds a number of {len(digits)} digits; no value of onnxq is that large")
    return int(digits)


def _constant(name: str) -> Any:
    raise _PartError(f"is not JSON (it holds {name})")


def stored_texts(model: Model, key: str, kind: type[T]) -> T:
    """The list or table of texts that onnxq stored in a model's metadata under `key`; empty without it.

    Raises:
        InvalidModelError: the entry is not JSON, or not of that kind.
    """
    text = model.metadata.get(key)
    if text is None:
        return kind()
    where = f"{model.name}: the metadata entry '{key}'"
    value = parse_json(text, where, InvalidModelError)
    fields = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(field, str) for field in fields):
        raise InvalidModelError(f"{where} is not what onnxq writes there; remove it")
    return value


_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _without_repeats,
    "parse_int": _whole_number,
    "parse_constant": _constant,
}
