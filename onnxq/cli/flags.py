"""From the fields that messages name, in backticks, to the options of the command that runs.

Nothing below the command line knows its options: a message says `metric_floor`, and here it becomes
--metric-floor where the running command has that option, and the plain word elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

__all__ = ["as_flags", "flag_of"]

_FIELD = re.compile(r"`(\w+)`")


def flag_of(parameter: click.Parameter) -> str:
    """How an option is typed: its long name where it has one."""
    return next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])


def as_flags(text: str) -> str:
    """The text with every field that is an option of the running command written as that option."""
    if "`" not in text:
        return text
    ctx = click.get_current_context(silent=True)
    flags = {} if ctx is None else dict(_options(ctx, ctx.command))
    return _FIELD.sub(lambda match: flags.get(match[1], match[1]), text)


def _options(ctx: click.Context, command: click.Command) -> Iterator[tuple[str, str]]:
    """(field, option) of a command; of a group, those of the command in it that was asked for."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name:
            yield from ((name.lstrip("-").replace("-", "_"), flag_of(parameter)) for name in parameter.opts)
            yield parameter.name, flag_of(parameter)
    if isinstance(command, click.Group) and ctx.invoked_subcommand:
        member = command.get_command(ctx, ctx.invoked_subcommand)
        if member is not None:
            yield from _options(ctx, member)
