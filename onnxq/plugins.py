"""Code of the user: an object named `module:attribute`, and what installed packages register as entry points.

Importing a module runs it. Only names that the user typed or wrote in Python come here, never names that a
run folder holds.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from passes.core.errors import UserError

__all__ = ["guarded", "import_object", "registered"]

T = TypeVar("T")


def guarded(origin: str, action: Callable[[], T], error: type[UserError] = UserError) -> T:
    """What the user's code gives; what it raises as an `error` that names where it came from."""
    try:
        return action()
    except (UserError, ImportError):
        raise
    except Exception as problem:  # the user's code may raise anything
        reason = " ".join(str(problem).split())[:200]
        raise error(
            f"{origin}: it raised {type(problem).__name__}{': ' + reason if reason else ''}."
        ) from problem


def import_object(spec: str, error: type[UserError] = UserError) -> Any:
    """The object that `module:attribute` names; modules in the current folder are found as well.

    Raises:
        UserError: it cannot be imported; of the kind `error`.
    """
    module_name, _, attribute = spec.partition(":")
    # A script's own folder is where the user's module lies; an installed command does not look there.
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        target = guarded(spec, lambda: importlib.import_module(module_name), error)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as problem:
        raise error(f"{spec}: cannot be imported ({problem}); use MODULE:NAME.") from problem
    finally:
        if added:
            sys.path.remove(here)
    return target


def registered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed package's entries in a group; none is imported yet."""
    return {entry.name: entry for entry in entry_points(group=group)}
