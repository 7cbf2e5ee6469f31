"""Rounding block by block (`rounding=brecq`; BRECQ, arXiv:2102.05426): behind learned rounding of each layer,
the layers of a block are learned together, for the block's output.

One chunk in five is not learned on. A block stays as it was where learning made its output no better there
(with few images learning fits them and no others), or where torch does not know an operator in it; its layers
say so in a note.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.rounding import DataRounder
from onnxq.rounding.blocks import blocks_of
from onnxq.rounding.replay import Replay
from onnxq.rounding.store import Store
from onnxq.training.config import require_torch
from passes.core.errors import UnsupportedModelError
from passes.graph.model import Model
from passes.rounding.task import RoundedLayer, RoundingTask

__all__ = ["BlockRounder"]

Array = npt.NDArray[Any]
Layers = list[tuple[RoundingTask, RoundedLayer]]
# One chunk in so many is held out.
_HOLD = 5


@dataclass(frozen=True)
class BlockRounder:
    """Lend it to passes as `Context.rounder`: rounds as `layers` does, by blocks where a task asks for it.

    steps: of Adam for each block, each on one chunk of images. progress: called with (blocks done, blocks).
    """

    layers: DataRounder
    steps: int = 1000
    progress: Callable[[int, int], None] | None = None

    def __call__(self, model: Model, tasks: Sequence[RoundingTask]) -> dict[str, RoundedLayer]:
        """Layer name -> rounded weight and bias. Raises UserError without torch or for unusable data."""
        if not any(task.method == "brecq" for task in tasks):
            return self.layers(model, tasks)
        require_torch()
        own = [dataclasses.replace(task, method="adaround") for task in tasks]
        walk = _Walk(self, model, own)
        found = self.layers(model, own, walk.arrived)
        walk.finish(found)
        return found

    def better(self, replay: Replay, before: Layers, seed: int) -> Layers:
        """The layers of a block learned together, or as they were."""
        from onnxq.training.soft_rounding import learn_block, learned_alike

        if any(task.shares for task, _ in before):
            return _noted(
                before, "not learned by blocks: layers of its block share their weights with others"
            )
        if not any(learned_alike(task.scheme) for task, _ in before):
            return before
        wanted = _Wanted(replay, self.layers.budget)
        if not wanted.real:
            return _noted(before, "not learned by blocks: its block ends in whole numbers")
        fit, held_out = _split(replay.chunks)
        old = wanted.errors(before)
        try:
            after = learn_block(
                replay.part(*before),
                before,
                lambda number: (replay.read(number), wanted[number]),
                fit,
                float(old[fit].mean()),
                self.steps,
                self.layers.seed + seed,
                self.layers.threads,
            )
        except UnsupportedModelError as error:
            return _noted(before, f"not learned by blocks: {error}")
        ratio = wanted.errors(after)[held_out].sum() / max(old[held_out].sum(), 1e-30)
        told = f"error of its block's output on held-out data times {ratio:.3f} by learning it as a whole"
        return _noted(after, told) if ratio < 1 else _noted(before, f"{told}: kept as it was")


class _Walk:
    """The blocks of a network, each learned when the layers behind it are reached."""

    def __init__(self, rounder: BlockRounder, model: Model, tasks: Sequence[RoundingTask]) -> None:
        self._rounder, self._blocks = rounder, blocks_of(model, tasks)
        self._replay = rounder.layers.replay(model, [block[0] for block in self._blocks], to_end=True)
        self._stops = iter(self._replay)
        self._done = -1

    def arrived(self, layers: Replay, task: RoundingTask, found: dict[str, RoundedLayer]) -> None:
        """Where a block begins: the one before it is learned, and what it gives now goes on."""
        if not any(task.output == block[0].output for block in self._blocks):
            return
        changed: tuple[str, ...] = ()
        if self._done >= 0:
            before = dict(found)
            after = self.finish(found)
            self._replay.rounded(*after)
            if any(held.encoded is not before[task.layer.name].encoded for task, held in after):
                changed = self._replay.writes
        next(self._stops)
        self._done += 1
        for name in changed:
            for number, (_, array) in enumerate(self._replay.inputs(name)):
                layers.replace(name, number, array)

    def finish(self, found: dict[str, RoundedLayer]) -> Layers:
        """The block that was begun last, learned if that is better; its layers are changed in `found`."""
        before = [(task, found[task.layer.name]) for task in self._blocks[self._done]]
        after = self._rounder.better(self._replay, before, self._done)
        found.update((task.layer.name, held) for task, held in after)
        if self._rounder.progress is not None:
            self._rounder.progress(self._done + 1, len(self._blocks))
        return after


class _Wanted:
    """What a block writes in the float network, by chunk. budget: bytes of it that are held in memory."""

    def __init__(self, replay: Replay, budget: int) -> None:
        self._replay, self._store = replay, Store(budget)
        for number, arrays in enumerate(replay.ahead()):
            for index, array in enumerate(arrays):
                self._store.put(str(index), number, array)
        self._names = [str(index) for index in range(len(arrays))]
        self.real = all(array.dtype.kind == "f" for array in arrays)

    def __getitem__(self, number: int) -> list[Array]:
        return [self._store.get(name, number) for name in self._names]

    def errors(self, layers: Layers) -> npt.NDArray[np.float64]:
        """Mean squared error of every chunk, summed over what the block writes, with these layers."""
        found = []
        for number, arrays in enumerate(self._replay.ahead(*layers)):
            pairs = zip(arrays, self[number], strict=True)
            found.append(sum(float(np.mean(np.square(one - other))) for one, other in pairs))
        return np.array(found)


def _split(chunks: int) -> tuple[list[int], list[int]]:
    """Chunks to learn on and chunks to judge by; the same where there are too few of them to part."""
    held_out = list(range(_HOLD - 1, chunks, _HOLD))
    if not held_out:
        return list(range(chunks)), list(range(chunks))
    return [number for number in range(chunks) if number not in held_out], held_out


def _noted(layers: Layers, note: str) -> Layers:
    return [(task, dataclasses.replace(held, note=note)) for task, held in layers]
