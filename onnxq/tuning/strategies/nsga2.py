"""`nsga2`: an evolution by the measured error of whole policies, from the fronts of the cheaper methods."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from onnxq.allocation.ilp import ilp_front
from onnxq.allocation.nsga2 import evolve
from onnxq.allocation.problem import Assignment, Problem
from onnxq.allocation.threshold import threshold_front
from onnxq.search.ranking import spread
from onnxq.tuning.strategies.base import Named, SpendsBits
from onnxq.tuning.strategies.search import Search
from passes.core.fields import Option

__all__ = ["NSGA2", "Generations", "evolved"]

Generations = Annotated[int, Option("Generations of the evolution.", least=1)]
# Of the time that is left, what the evolution may take.
_SHARE = 0.5


@dataclass(frozen=True)
class NSGA2(SpendsBits):
    """NSGA-II over size and measured error."""

    generations: Generations = 10
    name: ClassVar[str] = "nsga2"
    help: ClassVar[str] = "An evolution (NSGA-II) by the measured error of whole policies."
    caption: ClassVar[str] = "Policies were evolved by their measured error."

    def assignments(self, search: Search) -> Iterator[Named]:
        problem, limits = search.problem, search.goal.limits
        seeds = [a for over in search.goal.axes for a in ilp_front(problem, 8, over, limits)]
        sweep = [a for _, a in threshold_front(problem, 6)]
        seeds += [a for a in (*search.uniform(), *sweep) if problem.within(a, limits)]
        return evolved(search, problem, seeds, self.generations)


def evolved(search: Search, problem: Problem, seeds: list[Assignment], generations: int) -> Iterator[Named]:
    """The front of an evolution that starts from `seeds`; of those themselves where nothing fits."""
    goal, space = search.goal, search.space
    end = time.monotonic() + _SHARE * search.left
    rounds = iter(range(10**6))

    def stop() -> bool:
        space.progress("generations", min(next(rounds), generations), 0)
        late = time.monotonic() > end
        search.cut_short = search.cut_short or late
        return late

    front = evolve(
        problem,
        seeds,
        lambda assignment: space.mse(problem, assignment),
        generations=generations,
        seed=goal.seed,
        stop=stop,
        over=goal.axes[0],
        allowed=lambda assignment: search.problem.within(assignment, goal.limits),
    )
    front = [entry for entry in front if search.fits(entry.assignment)]
    sizes = np.array([entry.spent for entry in front], np.float64)
    if not len(sizes):
        yield from (("nsga2", seed) for seed in spread(seeds) if search.fits(seed))
        return
    wanted = np.linspace(sizes[0], sizes[-1], goal.front)
    chosen = sorted({int(np.abs(sizes - size).argmin()) for size in wanted})
    yield from (("nsga2", a) for a in spread([front[index].assignment for index in chosen]))
