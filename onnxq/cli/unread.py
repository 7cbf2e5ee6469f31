"""Options that were typed and that the others leave unread: refused, as nothing else would say so.

Values from --config and defaults may go unread: a configuration serves several commands.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
from click.core import ParameterSource

__all__ = ["refuse_unread"]


def refuse_unread(read: Mapping[str, tuple[bool, str]]) -> None:
    """read: parameter -> (whether the other options leave it any use, what it goes with or without).

    Raises UserError for the first that stands on the command line of the running command for nothing.
    """
    from passes.core.errors import UserError

    context = click.get_current_context()
    for name, (used, partner) in read.items():
        if not used and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
            raise UserError(f"{option}: nothing here reads it; it goes {partner}")
