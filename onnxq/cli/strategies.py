"""`--strategy` and the options that the strategies of the table declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

__all__ = ["strategy_options", "strategy_with", "unread_by_strategy"]

F = TypeVar("F", bound=Callable[..., Any])


class _StrategyOption(click.Option):
    """--strategy; its help tells of the strategies that there are, installed packages' included."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from onnxq.tuning.strategies import STRATEGIES, known_strategies

        own = " ".join(f"{name}: {kind.help}" for name, kind in STRATEGIES.items())
        others = [name for name in known_strategies() if name not in STRATEGIES]
        self.help = (
            f"How policies are found. {own} {'Installed: ' + ', '.join(others) + '. ' if others else ''}"
            "By default auto from three bit widths on or with a limit, else ranking. Also "
            "NAME{option=value}, or module:Class for one of your own, whose code is run."
        )
        return super().get_help_record(ctx)


def strategy_options(function: F) -> F:
    """--strategy, and an option for each that a strategy of the table declares."""
    from onnxq.tuning.strategies import STRATEGIES, readers_of
    from passes.fields import declared

    known = {name: spec for kind in STRATEGIES.values() for name, spec in declared(kind).items()}
    for name, spec in reversed(known.items()):
        function = click.option(
            f"--{name.replace('_', '-')}",
            type=spec.kind,
            default=spec.default,
            show_default=True,
            help=f"{spec.option.help} (Strategies {', '.join(readers_of(name))}.)",
        )(function)
    return click.option("--strategy", cls=_StrategyOption, default="")(function)


def strategy_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with options of strategies that `TuneConfig` has no field for put behind the strategy."""
    from onnxq.tuning import TuneConfig
    from onnxq.tuning.strategies import STRATEGIES
    from passes.fields import declared, to_text

    known = declared(TuneConfig)
    kept = {name: value for name, value in settings.items() if name in known}
    kind = STRATEGIES.get(settings["strategy"])
    own = declared(kind) if kind is not None else {}
    words = [f"{name}={to_text(settings[name])}" for name in own if name not in known and name in settings]
    if words:
        kept["strategy"] = f"{settings['strategy']}{{{' '.join(words)}}}"
    return kept


def unread_by_strategy(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what it goes with) of those that the chosen strategy does not read."""
    from onnxq.cli.tune import config_of
    from onnxq.tuning.strategies import readers_of, reads

    kind = type(config_of("", settings).search_options.strategy)
    for name in settings:
        readers = readers_of(name)
        if readers and not reads(kind, name):
            names = " or ".join(filter(None, [", ".join(readers[:-1]), readers[-1]]))
            yield name, f"with `strategy` {names}"
