"""What a strategy has to work with in one mode: the goal, the search space, what was measured so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxq.allocation.ilp import budgets
from onnxq.allocation.problem import Assignment, Problem
from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import reading_of
from onnxq.search.candidate import Candidate
from onnxq.search.ranking import Proposal
from onnxq.tuning.space import Space
from passes.policy import LayerPolicy, Policy

__all__ = ["Drawing", "Goal", "Search"]

Drawing = Callable[[Path, str], tuple[str, bytes]]

# Of a budget of bytes: what tables of values may add to the file after rounding on data.
_SPARE = 5e-4
# When what is left of the time no longer pays for another method.
_LEAST_LEFT_S = 20.0


@dataclass(frozen=True)
class Goal:
    """What is searched for.

    Attributes:
        front: points of a front.
        budget: bytes of the file; 0 asks for a front.
        bounds: limits on other resources by name.
        axes: resources that fronts are swept over.
        metric_floor: the metric's value to approach; 0 for none.
        seed: of every random choice.
    """

    front: int = 12
    budget: float = 0.0
    bounds: Mapping[str, float] = field(default_factory=dict)
    axes: tuple[str, ...] = ("bytes",)
    metric_floor: float = 0.0
    seed: int = 0

    @property
    def limits(self) -> dict[str, float]:
        """Every limit by the resource's name, the size of the file included."""
        return {**self.bounds, **({"bytes": self.budget} if self.budget else {})}


def _nothing_known() -> tuple[str, ...]:
    return ()


@dataclass
class Search:
    """One mode of a run.

    Attributes:
        ladder: schemes from cheapest to float.
        metric: what candidates are judged by.
        measured: gives the candidates of the run so far.
        weigh: bytes of a policy's file.
        layers: names of those in the search.
        opened: measures the sensitivities that are missing; gives the search space.
        ranked: gives the layers by their errors, the worst first.
        deadline: on time.monotonic's clock.
        cut_short: whether it was the reason to leave something out.
        drawings: pictures of the strategy's own, from (folder of the run, name of the model).
    """

    mode: str
    goal: Goal
    ladder: Sequence[LayerPolicy]
    metric: str | Reading
    measured: Callable[[], Sequence[Candidate]]
    weigh: Callable[[Policy], int]
    opened: Callable[[], tuple[Problem, Space]]
    layers: Sequence[str] = ()
    ranked: Callable[[], Sequence[str]] = _nothing_known
    deadline: float | None = None
    cut_short: bool = False
    drawings: list[Drawing] = field(default_factory=list)

    @cached_property
    def _opened(self) -> tuple[Problem, Space]:
        return self.opened()

    @property
    def problem(self) -> Problem:
        """Costs and bytes of every layer and choice; the first look measures the sensitivities."""
        return self._opened[0]

    @property
    def space(self) -> Space:
        """What measures pairs of layers and whole policies, and remembers it."""
        return self._opened[1]

    @cached_property
    def order(self) -> Sequence[str]:
        """The layers of the search, the one with the largest error first; the first look measures them."""
        return self.ranked()

    @property
    def left(self) -> float:
        """Seconds up to the deadline."""
        return np.inf if self.deadline is None else self.deadline - time.monotonic()

    def enough_time(self) -> bool:
        """Whether what is left pays for another method; if not, that is noted."""
        enough = self.left > _LEAST_LEFT_S
        self.cut_short = self.cut_short or not enough
        return enough

    def fits(self, assignment: Assignment) -> bool:
        """Whether the file keeps the budget, as it will be and not as predicted."""
        return not self.goal.budget or self.weigh(self.problem.policy(assignment)) <= self.most_bytes

    @property
    def most_bytes(self) -> float:
        """The budget, less what rounding on data may add to the file."""
        return (1 - _SPARE) * self.goal.budget

    def distinct(self, source: Iterable[tuple[str, Assignment]]) -> Iterator[Proposal]:
        """Proposals of different policies, numbered in the order in which they come."""
        seen: set[bytes] = set()
        for name, proposed in source:
            assignment = self._meant(proposed)
            if assignment.tobytes() in seen:
                continue
            step = len(seen)
            seen.add(assignment.tobytes())
            policy = self.problem.policy(assignment)
            yield Proposal(f"{self.mode}-{step:03d}", name, step, self.mode, policy, ())

    def _meant(self, assignment: Assignment) -> Assignment:
        """With the plain choice where a layer cannot be smoothed, so that no policy comes twice."""
        place = {choice: index for index, choice in enumerate(self.problem.choices)}
        plain = {index: place.get(replace(choice, smooth="none"), index) for choice, index in place.items()}
        kept = [
            int(index) if layer.op == "Conv" else plain[int(index)]
            for layer, index in zip(self.space.layers, assignment, strict=True)
        ]
        return np.array(kept, np.int64)

    def uniform(self) -> list[Assignment]:
        """Every layer in the same choice: what mixed precision has to beat."""
        return [self.problem.uniform(index) for index in range(self.problem.finest + 1)]

    def group_sizes(self) -> Iterator[tuple[str, Assignment]]:
        """Every layer the same, where group sizes are compared: the picture of them needs those points."""
        groups: dict[tuple[str, int], set[int]] = {}
        for choice in self.problem.choices:
            if choice.weights.granularity == "block":
                key = choice.weights.format, choice.weights.bits
                groups.setdefault(key, set()).add(choice.weights.block_size)
        if max(map(len, groups.values()), default=0) < 2:
            return
        for index, choice in enumerate(self.problem.choices):
            assignment = self.problem.uniform(index)
            if not choice.is_float and self.problem.within(assignment, self.goal.limits):
                yield "uniform", assignment

    def bracket(self) -> tuple[float, float] | None:
        """Sizes of the largest candidate below the metric floor and the smallest one at it."""
        kind, floor = reading_of(self.metric), self.goal.metric_floor
        known = [c for c in self.measured() if kind.name in c.metrics and c.bytes and c.mode == self.mode]
        good = [c.bytes for c in known if c.complete and kind.gap(c.metrics[kind.name], floor) <= 0]
        if not good:
            return None
        high = min(good)
        bad = [c.bytes for c in known if kind.gap(c.metrics[kind.name], floor) > 0 and c.bytes < high]
        low = max(bad, default=budgets(self.problem, 1)[0] - 1)
        return (low, high) if high - low > 0.005 * high else None
