"""A child process with a hard time limit on every call.

TVM's client hangs for ever on a peer that accepts and never answers, its tuner crashes the process, and its
compiler is C++: none of it runs in our process. The child is the leader of a process group of its own, so
that ending it ends what it started; it ends by itself when we are gone. Messages are pickles with a length
in front, over its standard input and output; what TVM itself prints goes to standard error, whose end is
kept for messages.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

__all__ = [
    "Child",
    "ChildDiedError",
    "ChildFailedError",
    "ChildTimeoutError",
    "read_message",
    "write_message",
]

_LENGTH = struct.Struct("<Q")
_ROOT = Path(__file__).resolve().parents[2]
_TAIL_BYTES = 4000


class ChildDiedError(Exception):
    """The process ended; the text says how."""


class ChildTimeoutError(Exception):
    """The call took longer than it may; the process was ended."""


class ChildFailedError(Exception):
    """The call raised in the child; the text is the type and message of what it raised."""


def write_message(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Raises EOFError where the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


class Child:
    """A process that runs `module`'s `main`, which serves calls (see tvm_child.py)."""

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        held = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
        # It lives as long as the child and is closed in `close`.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=held,
            start_new_session=True,
        )
        self._answers: queue.Queue[Any] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, name: str, *arguments: Any, limit_s: float) -> Any:
        """The result of the child's function `name`.

        Raises:
            ChildFailedError: it raised. ChildTimeoutError: it took longer than `limit_s`; the child is gone.
            ChildDiedError: the process ended meanwhile.
        """
        assert self._process.stdin is not None
        try:
            write_message(self._process.stdin, (name, arguments))
            kind, value = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self.close()
            raise ChildTimeoutError(f"no answer within {limit_s:g} s") from None
        except (OSError, ValueError):
            kind, value = "died", None
        if kind == "died":
            raise ChildDiedError(self._obituary())
        if kind == "error":
            raise ChildFailedError(value)
        return value

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._answers.put(read_message(self._process.stdout))
        except (EOFError, OSError, ValueError):
            self._answers.put(("died", None))

    def _obituary(self) -> str:
        code = self._process.wait()
        try:
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, self._errors.tell() - _TAIL_BYTES))
            lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
        except ValueError:
            lines = []
        said = next((line for line in reversed(lines) if line), "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}{': ' + said[:200] if said else ''}"
