"""A network's rounded layers in blocks, between tensors at which it is one tensor wide.

A residual connection never crosses such a tensor, so that what a block gets wrong shows at its end and
nowhere else. Single layers in a row are joined, three at most, as in a bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.rounding.steps import cut_steps
from passes.graph.model import Model
from passes.rounding.task import RoundingTask

__all__ = ["blocks_of"]

_JOINED = 3


def blocks_of(model: Model, tasks: Sequence[RoundingTask]) -> list[list[RoundingTask]]:
    """The tasks, in graph order, by block."""
    pieces: list[list[RoundingTask]] = []
    alive: set[str] = {value.name for value in model.proto.graph.input}
    alive -= {tensor.name for tensor in model.proto.graph.initializer}
    for task, step in zip(tasks, cut_steps(model, [task.output for task in tasks]), strict=True):
        alive = (alive | set(step.writes)) - set(step.last_use)
        if not pieces or len(alive) == 1:
            pieces.append([])
        pieces[-1].append(task)
    blocks: list[list[RoundingTask]] = []
    for piece in pieces:
        if blocks and len(blocks[-1]) + len(piece) <= _JOINED:
            blocks[-1].extend(piece)
        else:
            blocks.append(list(piece))
    return blocks
