"""`auto`: the cheap methods first, each feeding the next, and an evolution from all of them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.allocation.problem import Assignment
from onnxq.tuning.strategies.base import Named, SpendsBits
from onnxq.tuning.strategies.ilp import paired, program
from onnxq.tuning.strategies.nsga2 import Generations, evolved
from onnxq.tuning.strategies.search import Search
from onnxq.tuning.strategies.threshold import Tau, sweep

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(SpendsBits):
    """The integer program's front, the threshold's, the program with interactions, then an evolution."""

    tau: Tau = 0.0
    generations: Generations = 10
    name: ClassVar[str] = "auto"
    help: ClassVar[str] = "ilp, threshold, ilp with interactions, and nsga2 from all of them."
    caption: ClassVar[str] = "Integer program, threshold and evolution in turn, each from those before it."
    rounds: ClassVar[int] = 4

    def assignments(self, search: Search) -> Iterator[Named]:
        seeds: list[Assignment] = []
        for source in (program(search, search.problem, "ilp"), sweep(search, self.tau)):
            for entry in source:
                seeds.append(entry[1])
                yield entry
        if search.problem.count < 2 or not search.enough_time():
            return
        problem = paired(search)
        for entry in program(search, problem, "ilp-pairs"):
            seeds.append(entry[1])
            yield entry
        if not search.goal.budget and search.enough_time():
            starts = [*search.uniform(), *seeds[: 3 * search.goal.front]]
            yield from evolved(search, problem, starts, self.generations)
