"""The table of strategies, and from what a user wrote to the strategy that is meant.

A strategy is a name of the table, a name under which an installed package has registered one (entry points of
the group `onnxq.strategies`), a class of the user's as `module:Class`, or an object. Behind a name its
options may follow, as in `threshold{tau=0.1}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from onnxq.plugins import import_object, registered
from onnxq.tuning.strategies.auto import Auto
from onnxq.tuning.strategies.base import Strategy
from onnxq.tuning.strategies.ilp import ILP
from onnxq.tuning.strategies.nsga2 import NSGA2
from onnxq.tuning.strategies.ranking import Ranking
from onnxq.tuning.strategies.shapley import Shapley
from onnxq.tuning.strategies.threshold import Threshold
from passes.core.errors import UserError
from passes.core.fields import declared, from_texts, has_words, to_text

__all__ = [
    "STRATEGIES",
    "check_strategy",
    "known_strategies",
    "open_strategy",
    "readers_of",
    "reads",
    "strategy_name",
    "strategy_text",
]

STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Ranking, Threshold, ILP, Shapley, NSGA2, Auto)
}
"""Name -> strategy, of those that come with onnxq. A new one is a file of its own and a place here."""

GROUP = "onnxq.strategies"
_TEXT = re.compile(r"([^\s{}]+)(?:\{([^{}]*)\})?")


def known_strategies() -> list[str]:
    """Names of the table, then of what installed packages register."""
    return list(dict.fromkeys([*STRATEGIES, *sorted(registered(GROUP))]))


def readers_of(option: str) -> list[str]:
    """Names of the strategies of the table that read an option; none where it is not one of theirs."""
    return [name for name, kind in STRATEGIES.items() if reads(kind, option)]


def reads(kind: type[Strategy], option: str) -> bool:
    """Whether a strategy reads an option, of its own or of those that not every strategy reads."""
    return option in declared(kind) or option in kind.reads


def strategy_name(strategy: str | Strategy) -> str:
    """The name alone, without options; runs nobody's code."""
    return _split(strategy)[0] if isinstance(strategy, str) else strategy.name


def check_strategy(strategy: str) -> None:
    """Raises UserError for a text that names no strategy; imports none."""
    name = _split(strategy)[0]
    if ":" not in name and name not in known_strategies():
        near = difflib.get_close_matches(name, known_strategies(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ", or module:Class for one of your own"
        raise UserError(f"`strategy` {name}: is not one of {', '.join(known_strategies())}{hint}")


def open_strategy(strategy: str | Strategy, options: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy that is meant, an object as it is.

    `module:Class` and names of installed packages import, and so run, other people's code: a text that a run
    folder holds must never come here (see `strategy_name`).

    Args:
        options: values of options that the text does not name; those that the strategy does not have fall
            away.

    Raises:
        UserError: there is none of that name, or an option has no such value.
    """
    if not isinstance(strategy, str):
        return strategy
    name, texts = _split(strategy)
    kind = STRATEGIES.get(name) or _foreign(name)
    known = declared(kind)
    values = {key: value for key, value in (options or {}).items() if key in known}
    return kind(**{**values, **from_texts(kind, texts, f"strategy {name}")})


def strategy_text(strategy: str | Strategy) -> str:
    """What was asked for as text, with the options of an object that are not at their defaults."""
    if isinstance(strategy, str):
        return strategy
    kind = type(strategy)
    own = STRATEGIES.get(strategy.name) is kind
    name = strategy.name if own else f"{kind.__module__}:{kind.__qualname__}"
    changed = {
        spec.name: getattr(strategy, spec.name)
        for spec in declared(kind).values()
        if getattr(strategy, spec.name) != spec.default
    }
    words = " ".join(f"{key}={to_text(value)}" for key, value in changed.items())
    return f"{name}{{{words}}}" if words else name


def _split(text: str) -> tuple[str, dict[str, str]]:
    """`name{option=value ...}` as the name and its options."""
    match = _TEXT.fullmatch(text.strip())
    words = [word.partition("=") for word in ((match.group(2) or "").split() if match else ())]
    if match is None or not all(key and equals for key, equals, _ in words):
        raise UserError(f"`strategy` {text}: is written as NAME or NAME{{option=value ...}}")
    return match.group(1), {key: value for key, _, value in words}


def _foreign(name: str) -> type[Strategy]:
    """The class of the user's, or of an installed package."""
    check_strategy(name)
    kind = import_object(name if ":" in name else registered(GROUP)[name].value)
    problem = _problem(kind)
    if problem:
        raise UserError(f"`strategy` {name}: {problem}")
    found: type[Strategy] = kind
    return found


def _problem(kind: Any) -> str:
    """What is wrong with what was found under a name; empty where nothing is."""
    if not (isinstance(kind, type) and issubclass(kind, Strategy) and hasattr(kind, "__dataclass_fields__")):
        return "is not a frozen dataclass that derives from onnxq.tuning.strategies.Strategy"
    return "" if has_words(kind, "name", "help") else "does not say its name and one sentence of help"
