"""What a strategy of `tune` is: a frozen dataclass whose fields are its options, and what it needs.

A strategy is a file of its own and a place in the table of registry.py. Everything else asks the object: the
tuner for proposals, the configuration for what it takes, the command line for its options and its help.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from onnxq.allocation.problem import Assignment
from onnxq.search.ranking import Proposal
from onnxq.tuning.strategies.search import Goal, Search
from passes.core.errors import UserError
from passes.core.fields import check_fields

__all__ = ["Named", "SpendsBits", "Strategy"]

Named = tuple[str, Assignment]


class Strategy(ABC):
    """Proposes policies, mode by mode.

    Attributes:
        name: under which it is asked for.
        help: one sentence for the command line.
        caption: one sentence for reports: how its candidates came about.
        needs_sensitivities: whether it reads `Search.problem`.
        ahead: whether all its proposals are known before the first is measured; they may then be measured in
            any order and by several workers at a time.
        takes_limits: whether it keeps a budget, limits on costs and on bit operations.
        takes_activations: whether it searches several schemes of activations.
        takes_smoothing: whether it chooses smoothing layer by layer.
        reads: options of every tune that not every strategy reads, and this one does.
        least_schemes: schemes of a ladder, float included, that it needs.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    caption: ClassVar[str] = ""
    needs_sensitivities: ClassVar[bool] = False
    ahead: ClassVar[bool] = False
    takes_limits: ClassVar[bool] = False
    takes_activations: ClassVar[bool] = False
    takes_smoothing: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    least_schemes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Raises UserError for an option that has no such value."""
        check_fields(self, f"strategy {self.name}", UserError)

    @abstractmethod
    def proposals(self, search: Search) -> Iterable[Proposal]:
        """Policies to measure, the most useful first.

        What is measured is in `search.measured()` when the next one is asked for. Whatever takes long is
        kept in `search.space.journal`, so that a resumed run takes the same way.
        """

    def most(self, layers: int, schemes: int, goal: Goal) -> int:  # noqa: ARG002
        """The most proposals in a mode, for a dry run. schemes: of the ladder, without float."""
        return goal.front


class SpendsBits(Strategy):
    """A strategy that gives bits to layers by a table of sensitivities.

    Attributes:
        rounds: how many fronts it proposes.
    """

    needs_sensitivities: ClassVar[bool] = True
    takes_limits: ClassVar[bool] = True
    takes_activations: ClassVar[bool] = True
    takes_smoothing: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("front", "precision")
    rounds: ClassVar[int] = 1

    @abstractmethod
    def assignments(self, search: Search) -> Iterator[Named]:
        """(what the report calls it, choice of each layer), the most useful first; they may repeat."""

    def proposals(self, search: Search) -> Iterable[Proposal]:
        return search.distinct(itertools.chain(search.group_sizes(), self.assignments(search)))

    def most(self, layers: int, schemes: int, goal: Goal) -> int:  # noqa: ARG002
        refined = 10 if goal.metric_floor else 0
        return self.rounds * goal.front + refined + 1
