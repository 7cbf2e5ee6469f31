"""`threshold`: each layer gets the fewest bits whose sensitivity is below tau; sweeps over tau."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnxq.allocation.threshold import threshold, threshold_front
from onnxq.search.ranking import spread, thinned
from onnxq.tuning.strategies.base import Named, SpendsBits
from onnxq.tuning.strategies.search import Search
from passes.core.fields import Option

__all__ = ["Tau", "Threshold", "sweep"]

Tau = Annotated[float, Option("The one tau that layers are held to; 0 sweeps over it.", least=0)]


@dataclass(frozen=True)
class Threshold(SpendsBits):
    """GSE-MIX: for each layer the fewest bits with S < tau."""

    tau: Tau = 0.0
    name: ClassVar[str] = "threshold"
    help: ClassVar[str] = "Each layer gets the fewest bits whose sensitivity is below tau."
    caption: ClassVar[str] = "Each layer got the fewest bits whose sensitivity is below one tau."

    def assignments(self, search: Search) -> Iterator[Named]:
        return sweep(search, self.tau)


def sweep(search: Search, tau: float) -> Iterator[Named]:
    """The policy of one tau, or where that is 0 the front of all of them within the limits."""
    goal, problem = search.goal, search.problem
    if tau:
        yield "threshold", threshold(problem, tau)
        return
    # Within limits most of a sweep falls away: choose among more.
    count = 10**6 if goal.limits else goal.front
    front = [a for _, a in threshold_front(problem, count) if problem.within(a, goal.limits)]
    if goal.budget:
        kept = list(itertools.islice(filter(search.fits, reversed(front)), 1))
    else:
        kept = thinned(front, goal.front)
    yield from (("threshold", a) for a in spread(kept))
