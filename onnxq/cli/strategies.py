"""`--strategy` and the options that the strategies of the table declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from onnxq.cli.declared import declared_options
from onnxq.cli.tuning import config_of
from onnxq.tuning.strategies import STRATEGIES, known_strategies, readers_of, reads
from passes.core.fields import declared

__all__ = ["read_by", "strategy_options", "unread_by_strategy"]

F = TypeVar("F", bound=Callable[..., Any])


class _StrategyOption(click.Option):
    """--strategy; its help tells of the strategies that there are, installed packages' included."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        own = " ".join(f"{name}: {kind.help}" for name, kind in STRATEGIES.items())
        others = [name for name in known_strategies() if name not in STRATEGIES]
        self.help = (
            f"How policies are found. {own} {'Installed: ' + ', '.join(others) + '. ' if others else ''}"
            "By default auto from three bit widths on or with a limit, else ranking. Also "
            "NAME{option=value}, or module:Class for one of your own, whose code is run."
        )
        return super().get_help_record(ctx)


def read_by(name: str) -> str:
    """Which strategies read an option, for its help; empty where all do."""
    readers = readers_of(name)
    return f"read by {', '.join(readers)}" if readers else ""


def strategy_options(function: F) -> F:
    """--strategy, and an option for each that a strategy of the table declares."""
    for kind in reversed(STRATEGIES.values()):
        first = [name for name in declared(kind) if readers_of(name)[0] == kind.name]
        function = declared_options(kind, *first, readers=read_by)(function)
    return click.option("--strategy", cls=_StrategyOption, default="")(function)


def unread_by_strategy(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what it goes with) of those that the chosen strategy does not read."""
    kind = type(config_of("", settings).search_options.strategy)
    for name in settings:
        readers = readers_of(name)
        if readers and not reads(kind, name):
            names = " or ".join(filter(None, [", ".join(readers[:-1]), readers[-1]]))
            yield name, f"with `strategy` {names}"
