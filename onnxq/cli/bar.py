"""A progress bar on stderr where that is a terminal, and none elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["EVERY_S", "TerminalBar"]

# Seconds between the plain lines that stand in for the bar where there is no terminal.
EVERY_S = 10.0
_Self = TypeVar("_Self", bound="TerminalBar")


class TerminalBar:
    """A context manager around rich's bar; `bar` is None where stderr is no terminal.

    label: text in front of the bar; note: text behind it. Both may name fields of a task.
    """

    def __init__(self, label: str, note: str) -> None:
        self._label, self._note = label, note
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self: _Self) -> _Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.text import Text

            from onnxq.cli.terminal import printable

            class Words(TextColumn):
                """Text of a task as it is: no markup, control characters escaped."""

                def render(self, task: Any) -> Text:
                    return Text(printable(self.text_format.format(task=task)), style=self.style)

            self.bar = Progress(
                Words(self._label),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                Words(self._note, style="green"),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
