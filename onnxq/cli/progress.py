"""Progress of a tune: a bar with the best so far on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxq.tuning import Event

__all__ = ["Progress"]

_PHASES = {"prepare": "preparing", "rank": "ranking layers", "measure": "measuring", "confirm": "confirming"}
_EVERY_S = 10.0


class Progress:
    """A context manager that is called with the events of a tune."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._phase = ("", 0)
        self._last = 0.0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[best]}", style="green"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if event.phase == "warn":
            text = f"Warning: {event.text}"
            if self._bar is None:
                click.echo(text, err=True)
            else:
                self._bar.console.print(text, markup=False, highlight=False)
            return
        phase = _PHASES.get(event.phase, event.phase)
        begins = (event.phase, event.total) != self._phase
        self._phase = (event.phase, event.total)
        if self._bar is None:
            self._line(event, phase, begins)
            return
        if begins:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(phase, total=event.total, best=event.best)
        self._bar.update(self._task, completed=event.done, **({"best": event.best} if event.best else {}))

    def _line(self, event: Event, phase: str, begins: bool) -> None:
        """One line when a phase begins or ends, and one every few seconds."""
        now = time.monotonic()
        if not begins and event.done < event.total and now - self._last < _EVERY_S:
            return
        self._last = now
        best = f", {event.best}" if event.best else ""
        click.echo(f"{phase} {event.done}/{event.total} {event.text}{best}", err=True)
