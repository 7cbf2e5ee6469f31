"""A temporary folder that lives as long as the dataset that reads from it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["Scratch"]


class Scratch:
    """Removed when it is garbage collected or the interpreter ends.

    tempfile.TemporaryDirectory would warn then, but a dataset has no moment of closing.
    """

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
