"""How a process ends: cleanly when it is told to, and never later than its parent.

SIGTERM and SIGHUP end the command like an error: blocks are left in order, so temporary folders go, workers
end and files are whole. Code in a library may not return for minutes; a thread then cleans up and ends the
process after a few seconds. A worker or child ends with its parent whatever ended that: Linux kills it
(PR_SET_PDEATHSIG), and everywhere a thread notices that the pipe to the parent is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Terminated", "die_with_parent", "end_cleanly", "end_with_pipe"]

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_GRACE_S = 5.0


class Terminated(SystemExit):
    """The process was told to end by a signal; its exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def end_cleanly() -> None:
    """Raise `Terminated` in the main thread on SIGTERM and SIGHUP, unless they are ignored (nohup).

    Call it in the main thread.
    """
    handled = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _raise)
    if handled:
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        threading.Thread(target=_end_late, args=(told, set(handled)), daemon=True).start()


def _raise(number: int, _: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one would interrupt the clean-up
    raise Terminated(number)


def _end_late(told: int, handled: set[int]) -> None:
    """End the process some time after the signal, in case that the main thread does not get to it."""
    while data := os.read(told, 1):
        if data[0] in handled:
            time.sleep(_GRACE_S)
            _remove_live()
            os._exit(128 + data[0])


def die_with_parent() -> None:
    """Let the system end this process with its parent, also in the middle of a call into a library."""
    parent = os.getppid()
    linux = sys.platform == "linux"  # a variable, or mypy takes the rest for dead
    if linux:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        return
    threading.Thread(target=_end_as_orphan, args=(parent,), daemon=True).start()


def _end_as_orphan(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    _remove_live()
    os._exit(1)


def end_with_pipe(pipe: Connection) -> None:
    """End this worker process as soon as the other end of `pipe` is closed, by its parent or by its death.

    What the terminal sends to all its processes (Ctrl-C, hanging up) is for the parent to answer.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_at_eof, args=(pipe,), daemon=True).start()
    die_with_parent()


def _end_at_eof(pipe: Connection) -> None:
    with contextlib.suppress(OSError, EOFError):
        pipe.recv_bytes()
    _remove_live()
    os._exit(1)


def _remove_live() -> None:
    # Not imported: loading `passes` takes half a second, which `onnxq --help` need not wait for.
    scratch = sys.modules.get("passes.graph.scratch")
    if scratch is not None:
        scratch.remove_live()
