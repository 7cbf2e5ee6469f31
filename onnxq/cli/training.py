"""Live progress of a training, and what is said at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.cli.bar import EVERY_S, TerminalBar
from onnxq.cli.terminal import printable, say

if TYPE_CHECKING:
    from onnxq.proof.saving import Written
    from onnxq.training.run import Outcome
    from onnxq.training.trainer import Event

__all__ = ["Live", "report"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _text(event: Event) -> str:
    """Loss, accuracy, and what the method says, in one line."""
    parts = [f"loss {event.loss:.3f}"]
    if event.accuracy is not None:
        parts.append(f"accuracy {_share(event.accuracy)}")
    status = event.status
    if "nonzero_lsb" in status:
        parts.append(f"nonzero LSBs {_share(status['nonzero_lsb'])}")
    if "compression" in status:
        parts.append(f"compression {status['compression']:.2f}x")
    if "bits" in status:
        parts.append("bits " + " ".join(str(bits) for bits in status["bits"].values()))
    return ", ".join(parts)


class Live(TerminalBar):
    """A context manager that is called with the events of a training: a bar and the last numbers on a
    terminal, plain lines elsewhere; always on stderr."""

    def __init__(self) -> None:
        super().__init__("training", "{task.fields[text]}")
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        text = _text(event)
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task("training", total=event.total, text=text)
            self.bar.update(self.task, completed=event.step, total=event.total, text=text)
            if event.status:
                self.bar.console.print(printable(f"step {event.step}/{event.total}: {text}"), markup=False)
            return
        now = time.monotonic()
        if event.status or now - self._last > EVERY_S:
            self._last = now
            say(f"step {event.step}/{event.total}: {text}", err=True)


def report(
    outcome: Outcome, target: Path, folder: Path, written: Written, before: int, as_json: bool
) -> None:
    """The end of a training, for people or as JSON."""
    from onnxq.cli.terminal import megabytes, print_json, ratio, remark

    size = written.size
    if as_json:
        print_json(
            {
                "finished": True,
                "output": str(target),
                "bytes": size,
                "bytes_before": before,
                "accuracy": outcome.accuracy,
                "float_accuracy": outcome.float_accuracy,
                "bits": outcome.bits,
                "folder": str(folder),
                "proof": written.proof.to_json(),
            }
        )
        return
    say(f"{target}: {megabytes(before)} -> {megabytes(size)} ({ratio(size, before)})")
    remark(f"  {written.proof.sentence()}")
    if outcome.accuracy is not None:
        say(f"  accuracy {_share(outcome.accuracy)}, float {_share(outcome.float_accuracy)}")
    say("  bits " + " ".join(str(bits) for bits in outcome.bits.values()))
    remark(f"  log and plots: {folder}")
