"""`shapley`: SMPQ's own policy by alpha, and fronts of the integer program over Shapley values."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from onnxq.allocation.shapley import ShapleyState, Step, play, value_problem, walks
from onnxq.tuning.pictures import draw_shapley
from onnxq.tuning.strategies.base import Named, SpendsBits
from onnxq.tuning.strategies.ilp import program
from onnxq.tuning.strategies.search import Search
from passes.core.fields import Option

__all__ = ["Shapley", "shapley_state"]

_RECORD = "walk"
# Of the time that is left, what walks may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Shapley(SpendsBits):
    """Shapley values of every layer's steps, from walks through the search space."""

    permutations: Annotated[int, Option("Walks that the values are averaged over.", least=1)] = 10
    name: ClassVar[str] = "shapley"
    help: ClassVar[str] = "SMPQ: Shapley values from random walks, then an integer program over them."
    caption: ClassVar[str] = "Bits were given to layers by the Shapley values of their steps."
    least_schemes: ClassVar[int] = 3

    def assignments(self, search: Search) -> Iterator[Named]:
        state = shapley_state(search, self.permutations)

        def drawn(folder: Path, model: str) -> tuple[str, bytes]:
            return draw_shapley(folder, search.mode, model, state)

        search.drawings.append(drawn)
        if state.count == 0:
            return
        by_size = value_problem(search.problem, state)
        if not search.goal.limits:
            yield "shapley-alpha", state.policy
        yield from program(search, by_size, self.name)


def shapley_state(search: Search, count: int) -> ShapleyState:
    """`count` walks, or as many as half of the time left allows; none of the journal's again."""
    problem, space = search.problem, search.space
    state = ShapleyState.empty(problem)
    end = time.monotonic() + _SHARE * search.left
    for index, walk in enumerate(walks(problem, count, search.goal.seed)):
        key = f"{search.mode}|{index}"
        steps = space.journal.get(_RECORD, key)
        if steps is None:
            if state.count and time.monotonic() > end:
                search.cut_short = True
                break
            steps = [list(step) for step in play(walk, lambda a: space.mse(problem, a))]
            space.journal.append(_RECORD, key, steps)
        state = state.update([Step(*step) for step in steps])
        space.progress("permutations", index + 1, count)
    return state
