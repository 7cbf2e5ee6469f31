"""A child process for the tests of onnxq/runners/child.py: it echoes, fails, hangs or dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from onnxq.runners.child import read_message, write_message


def _answer(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "hang":
        time.sleep(600)
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return ("error", "ValueError: no") if name == "fail" else ("ok", arguments[0])


def main() -> None:
    while True:
        try:
            name, arguments = read_message(sys.stdin.buffer)
        except EOFError:
            return
        write_message(sys.stdout.buffer, _answer(name, arguments))
