"""Activations of a data set by tensor and chunk, in memory up to a budget and on disk beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.files import Scratch

__all__ = ["DEFAULT_BUDGET", "Store"]

DEFAULT_BUDGET = 256 * 2**20


class Store:
    """Arrays by (tensor, chunk). budget: bytes that are held in memory; what comes later goes to files."""

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget, self.held, self.spilled = budget, 0, 0
        self._arrays: dict[tuple[str, int], NDArray[Any] | Path] = {}
        self._scratch: Scratch | None = None
        self._serial = 0

    def put(self, tensor: str, chunk: int, array: NDArray[Any]) -> None:
        """Keep an array, instead of the one that was there."""
        self._forget((tensor, chunk))
        if self.held + array.nbytes <= self.budget:
            self.held += array.nbytes
            self._arrays[tensor, chunk] = array
            return
        if self._scratch is None:
            self._scratch = Scratch()
        path = self._scratch.path / f"{self._serial}.npy"
        self._serial += 1
        np.save(path, array)
        self.spilled += array.nbytes
        self._arrays[tensor, chunk] = path

    def get(self, tensor: str, chunk: int) -> NDArray[Any]:
        """The array; read back into memory of its own where it was spilled."""
        held = self._arrays[tensor, chunk]
        return np.load(held) if isinstance(held, Path) else held

    def holds(self, tensor: str) -> bool:
        return (tensor, 0) in self._arrays

    def drop(self, tensor: str) -> None:
        """Forget every chunk of a tensor."""
        for key in [key for key in self._arrays if key[0] == tensor]:
            self._forget(key)

    def _forget(self, key: tuple[str, int]) -> None:
        held = self._arrays.pop(key, None)
        if isinstance(held, Path):
            held.unlink()
        elif held is not None:
            self.held -= held.nbytes
