"""The activations at one cut of the float network, for all samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["CutActivations"]

Array = npt.NDArray[np.float32]


class CutActivations:
    """float32 [N, ...], written once from front to back, read in any order.

    path: a plain file to hold them; without one they are in memory. The pages of a mapped file would count as
    the process's own.
    """

    def __init__(self, shape: tuple[int, ...], path: Path | None = None) -> None:
        self.shape, self.path = shape, path
        self.memory = 0 if path else 4 * math.prod(shape)
        self._array = np.empty(shape, np.float32) if path is None else None
        self._file = path.open("wb") if path else None
        self._written = 0

    def append(self, part: Array) -> None:
        """The next samples; the file is complete with the last of them."""
        if self._array is not None:
            self._array[self._written : self._written + len(part)] = part
        elif self._file is not None:
            np.ascontiguousarray(part, np.float32).tofile(self._file)
        self._written += len(part)
        if self._file is not None and self._written == self.shape[0]:
            self._file.close()

    def read(self, start: int, stop: int) -> Array:
        """Samples [start, stop), contiguous."""
        if self._array is not None:
            return self._array[start:stop]
        assert self.path is not None
        each, stop = math.prod(self.shape[1:]), min(stop, self.shape[0])
        flat = np.fromfile(self.path, np.float32, (stop - start) * each, offset=4 * start * each)
        return flat.reshape(stop - start, *self.shape[1:])

    def close(self) -> None:
        """Give back what is held; its file is deleted."""
        self._array, self.memory = None, 0
        if self._file is not None:
            self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
