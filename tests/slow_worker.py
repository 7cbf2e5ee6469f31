"""What a worker process makes of its shipment in tests/onnxq/test_signals.py: it never comes to an end."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

__all__ = ["Slow"]


class Slow:
    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def work(self, task: Any) -> None:
        (self._folder / f"working-{os.getpid()}").touch()
        hashlib.pbkdf2_hmac("sha256", b"x", b"x", 10**9)
