"""`ilp`: the integer program's front, first with independent layers, then with interactions of neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.allocation.ilp import budgets, ilp, ilp_front
from onnxq.allocation.problem import Assignment, Problem
from onnxq.search.ranking import spread
from onnxq.tuning.strategies.base import Named, SpendsBits
from onnxq.tuning.strategies.search import Search
from passes.core.errors import UserError

__all__ = ["FLOOR_STEPS", "ILP", "paired", "program"]

FLOOR_STEPS = 5


@dataclass(frozen=True)
class ILP(SpendsBits):
    """The least sum of sensitivities under a size, without and with interactions."""

    name: ClassVar[str] = "ilp"
    help: ClassVar[str] = "An integer program takes the least sum of sensitivities under each size."
    caption: ClassVar[str] = "Bits were given to layers by an integer program over their sensitivities."
    rounds: ClassVar[int] = 2

    def assignments(self, search: Search) -> Iterator[Named]:
        yield from program(search, search.problem, self.name)
        if search.problem.count > 1 and search.enough_time():
            yield from program(search, paired(search), "ilp-pairs")


def paired(search: Search) -> Problem:
    """With interactions of neighbours, measured in the middle of the search space."""
    middle = budgets(search.problem, 2)[0]
    return search.space.with_interactions(search.problem, ilp(search.problem, middle))


def program(search: Search, problem: Problem, name: str) -> Iterator[Named]:
    """One budget, or a front, and then towards the metric floor by bisection."""
    goal = search.goal
    if goal.budget:
        yield name, _within_budget(search, problem)
        return
    for over in goal.axes:
        yield from ((name, a) for a in spread(list(ilp_front(problem, goal.front, over, goal.bounds))))
    if not goal.metric_floor:
        return
    for _ in range(FLOOR_STEPS):
        bracket = search.bracket()
        if bracket is None:
            return
        try:
            yield name, ilp(problem, sum(bracket) / 2, limits=goal.bounds)
        except UserError:  # the limits leave nothing of that size
            return


def _within_budget(search: Search, problem: Problem) -> Assignment:
    """The best policy whose file keeps the budget. Raises UserError where there is none.

    Predicted sizes lack what a mixture of formats brings along: what the last policy's lacked is taken
    off the budget of the next.
    """
    limits, target = search.goal.bounds, search.most_bytes
    aim = target
    while True:
        best = ilp(problem, aim, limits=limits)
        lacking = search.weigh(problem.policy(best)) - problem.size(best)
        if problem.size(best) + lacking <= target:
            break
        aim = min(target - lacking, aim - 1)
    # The policies before may have had more formats: what this one lacks is less.
    if target - lacking > aim:
        larger = ilp(problem, target - lacking, limits=limits)
        best = larger if search.fits(larger) else best
    return best
