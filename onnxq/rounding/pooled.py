"""Layers that read one weight are rounded as one: on the moments of all their inputs, summed up.

The moments are those of the float network, in a walk of its own before any layer is rounded, since a weight
that is used early and late has no single rounded network before it. The first of its layers to be reached is
rounded on them; the others take its codes. Each layer's bias is its own, corrected for its own inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import onnx

from onnxq.rounding.moments import Accumulator
from onnxq.rounding.replay import Replay
from passes.rounding.task import Dampings, Moments, RoundedLayer, RoundingTask, round_task, with_codes

__all__ = ["Pool", "pooled"]

# (replay, task, its node, sums to go on with) -> sums over the task's inputs
Sums = Callable[[Replay, RoundingTask, onnx.NodeProto, Accumulator | None], Accumulator]


class Pool:
    """The weights of `tasks` that several layers read."""

    def __init__(self, tasks: Sequence[RoundingTask], sums: dict[str, Accumulator]) -> None:
        self._sums = sums
        self._counts = Counter(task.shares for task in tasks if task.shares)
        # Centred moments leave the means to the bias, which all of the layers must have.
        self._centred = {
            key: all(task.bias is not None for task in tasks if task.shares == key) for key in sums
        }
        self._first: dict[str, tuple[RoundingTask, RoundedLayer]] = {}

    def __contains__(self, task: RoundingTask) -> bool:
        return task.shares in self._sums

    def rounded(
        self, task: RoundingTask, own: Moments, damping: float | Dampings, sweeps: int
    ) -> RoundedLayer:
        """The layer with the weight that it shares. own: the moments of its inputs alone, for its bias."""
        if task.shares not in self._first:
            moments = self._sums[task.shares].moments(self._centred[task.shares])
            self._first[task.shares] = task, round_task(task, moments, damping, sweeps)
        first, held = self._first[task.shares]
        shared = with_codes(task, held.encoded, own)
        if shared is None:
            alone = round_task(task, own, damping, sweeps)
            note = f"its bias leaves int32 on the scales of '{first.layer.name}', which reads the same weight"
            return RoundedLayer(alone.encoded, alone.bias, f"{note}: rounded by itself")
        others = self._counts[task.shares] - 1
        note = f"rounded as one with {others} other layer(s) that read its weight, on the inputs of all"
        return RoundedLayer(shared.encoded, shared.bias, note)


def pooled(
    tasks: Sequence[RoundingTask], walk: Callable[[Sequence[RoundingTask]], Replay], sums: Sums
) -> Pool:
    """The shared weights among `tasks`. walk: through the float network, stopping at the given tasks."""
    counts = Counter(task.shares for task in tasks if task.shares and task.method != "bias")
    shared = [task for task in tasks if counts[task.shares] > 1]
    found: dict[str, Accumulator] = {}
    if shared:
        replay = walk(shared)
        for task, node in replay:
            found[task.shares] = sums(replay, task, node, found.get(task.shares))
    return Pool(tasks, found)
