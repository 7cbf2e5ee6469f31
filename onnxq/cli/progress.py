"""Progress of a tune: a bar with the best so far on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from onnxq.cli.bar import EVERY_S, TerminalBar

if TYPE_CHECKING:
    from onnxq.tuning import Event

__all__ = ["Progress"]

_PHASES = {"prepare": "preparing", "rank": "analysing", "measure": "measuring", "confirm": "confirming"}


class Progress(TerminalBar):
    """A context manager that is called with the events of a tune."""

    def __init__(self) -> None:
        super().__init__("{task.description:<14}", "{task.fields[best]}")
        self._phase = ("", 0)
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if event.phase == "warn":
            text = f"Warning: {event.text}"
            if self.bar is None:
                click.echo(text, err=True)
            else:
                self.bar.console.print(text, markup=False, highlight=False)
            return
        phase = _PHASES.get(event.phase, event.phase)
        begins = (event.phase, event.total) != self._phase
        self._phase = (event.phase, event.total)
        if self.bar is None:
            self._line(event, phase, begins)
            return
        if begins:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(phase, total=event.total or None, best=event.best)
        self.bar.update(self.task, completed=event.done, **({"best": event.best} if event.best else {}))

    def _line(self, event: Event, phase: str, begins: bool) -> None:
        """One line when a phase begins or ends, and one every few seconds."""
        now = time.monotonic()
        ends = 0 < event.total <= event.done
        if not (begins or ends) and now - self._last < EVERY_S:
            return
        self._last = now
        best = f", {event.best}" if event.best else ""
        # Some searches do not know how many candidates there will be.
        count = f"{event.done}/{event.total}" if event.total else f"{event.done}"
        click.echo(f"{phase} {count} {event.text}{best}", err=True)
