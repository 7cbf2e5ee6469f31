"""Progress of a tune and of rounding by data: a bar on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from onnxq.cli.bar import EVERY_S, TerminalBar
from onnxq.cli.flags import as_flags
from onnxq.cli.terminal import printable, say

if TYPE_CHECKING:
    from onnxq.tuning import Event

__all__ = ["Progress", "RoundingProgress"]

_PHASES = {"prepare": "preparing", "rank": "analysing", "measure": "measuring", "confirm": "confirming"}


class Progress(TerminalBar):
    """A context manager that is called with the events of a tune."""

    def __init__(self) -> None:
        super().__init__("{task.description:<14}", "{task.fields[best]}")
        self._phase = ("", 0)
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if event.phase == "warn":
            text = as_flags(f"Warning: {event.text}")
            if self.bar is None:
                say(text, err=True)
            else:
                self.bar.console.print(printable(text), markup=False, highlight=False)
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
        say(f"{phase} {count} {event.text}{best}", err=True)


class RoundingProgress(TerminalBar):
    """A context manager with the two callbacks of the rounders."""

    def __init__(self) -> None:
        super().__init__("{task.description:<14}", "")
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()

    def layers(self, done: int, total: int) -> None:
        self._tell("rounding", done, total)

    def blocks(self, done: int, total: int) -> None:
        self._tell("learning", done, total)

    def _tell(self, phase: str, done: int, total: int) -> None:
        if self.bar is None:
            # Nothing for what is over before anybody wonders.
            if time.monotonic() - self._last >= EVERY_S:
                self._last = time.monotonic()
                say(f"{phase} {done}/{total}", err=True)
            return
        if phase not in self._tasks:
            self._tasks[phase] = self.bar.add_task(phase, total=total)
        self.bar.update(self._tasks[phase], completed=done, total=total)
