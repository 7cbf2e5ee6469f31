"""The strategies that spend bits by a table of sensitivities: what they propose, one after the other.

Each is a generator of proposals; it may look at what was measured before it goes on, and everything expensive
that it does is in the journal, so that a resumed run takes the same way. `auto` goes from cheap to dear: the
integer program's front, the threshold's, the integer program with interactions of neighbours, and an
evolution that starts from all of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.allocation.ilp import budgets, ilp, ilp_front
from onnxq.allocation.nsga2 import evolve
from onnxq.allocation.problem import Assignment, Problem
from onnxq.allocation.shapley import ShapleyState, Step, play, value_problem, walks
from onnxq.allocation.threshold import threshold, threshold_front
from onnxq.metrics.reading import Reading
from onnxq.metrics.registry import reading_of
from onnxq.search.candidate import Candidate
from onnxq.search.ranking import Proposal, coarse_to_fine
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.space import Space
from passes.core.errors import UserError
from passes.policy import Policy

__all__ = ["Allocator"]

_SHAPLEY_RECORD = "walk"
_FLOOR_STEPS = 5
# Of a time budget: what sensitivities may take, and when what is left no longer pays for another method.
_EVOLUTION_SHARE = 0.5
_LEAST_LEFT_S = 20.0
# Of a budget of bytes: what tables of values may add to the file after rounding on data.
_SPARE = 5e-4


@dataclass
class Allocator:
    """Proposals of one mode's strategy.

    measured: the candidates of the run so far. weigh: bytes of a policy's file. deadline: on time.monotonic's
    clock. cut_short: whether it was the reason to leave something out. shapley: the walks of that strategy,
    once it has made them.
    """

    mode: str
    config: TuneConfig
    problem: Problem
    space: Space
    metric: str | Reading
    measured: Callable[[], Sequence[Candidate]]
    weigh: Callable[[Policy], int]
    deadline: float | None = None
    cut_short: bool = False
    shapley: ShapleyState | None = None

    def proposals(self) -> Iterator[Proposal]:
        """Different policies, in the order of their worth."""
        strategy = self.config.chosen_strategy
        source = itertools.chain(self._group_sizes(), getattr(self, f"_{strategy}")())
        seen: set[bytes] = set()
        step = 0
        for name, proposed in source:
            assignment = self._meant(proposed)
            if assignment.tobytes() in seen:
                continue
            seen.add(assignment.tobytes())
            policy = self.problem.policy(assignment)
            yield Proposal(f"{self.mode}-{step:03d}", name, step, self.mode, policy, ())
            step += 1

    def _meant(self, assignment: Assignment) -> Assignment:
        """With the plain choice where a layer cannot be smoothed, so that no policy comes twice."""
        place = {choice: index for index, choice in enumerate(self.problem.choices)}
        plain = {index: place.get(replace(choice, smooth="none"), index) for choice, index in place.items()}
        kept = [
            int(index) if layer.op == "Conv" else plain[int(index)]
            for layer, index in zip(self.space.layers, assignment, strict=True)
        ]
        return np.array(kept, np.int64)

    def _group_sizes(self) -> Iterator[tuple[str, Assignment]]:
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
            if not choice.is_float and self.problem.within(assignment, self._bounds()):
                yield "uniform", assignment

    def _left(self) -> float:
        return np.inf if self.deadline is None else self.deadline - time.monotonic()

    def _enough_time(self) -> bool:
        """Whether what is left pays for another method; if not, that is noted."""
        enough = self._left() > _LEAST_LEFT_S
        self.cut_short = self.cut_short or not enough
        return enough

    def _threshold(self) -> Iterator[tuple[str, Assignment]]:
        if self.config.tau:
            yield "threshold", threshold(self.problem, self.config.tau)
            return
        bounds = self._bounds()
        # Within limits most of a sweep falls away: choose among more.
        count = 10**6 if bounds else self.config.front
        sweep = (assignment for _, assignment in threshold_front(self.problem, count))
        front = [assignment for assignment in sweep if self.problem.within(assignment, bounds)]
        if self.config.budget:
            kept = list(itertools.islice(filter(self._fits, reversed(front)), 1))
        else:
            kept = _thinned(front, self.config.front)
        yield from (("threshold", a) for a in _spread(kept))

    def _bounds(self) -> dict[str, float]:
        """Every limit of this run by the resource's name, the size of the file included."""
        return self.config.bounds | ({"bytes": self.config.budget} if self.config.budget else {})

    def _ilp(self) -> Iterator[tuple[str, Assignment]]:
        yield from self._program(self.problem, "ilp")
        if self.problem.count > 1 and self._enough_time():
            yield from self._program(self._paired(), "ilp-pairs")

    def _paired(self) -> Problem:
        """With interactions of neighbours, measured in the middle of the search space."""
        middle = budgets(self.problem, 2)[0]
        return self.space.with_interactions(self.problem, ilp(self.problem, middle))

    def _program(self, problem: Problem, name: str) -> Iterator[tuple[str, Assignment]]:
        """One budget, or a front, and then towards the metric floor by bisection."""
        limits = self.config.bounds
        if self.config.budget:
            yield name, self._within_budget(problem)
            return
        for over in self._axes():
            found = list(ilp_front(problem, self.config.front, over, limits))
            yield from ((name, a) for a in _spread(found))
        if not self.config.metric_floor:
            return
        for _ in range(_FLOOR_STEPS):
            bracket = self._bracket()
            if bracket is None:
                return
            try:
                yield name, ilp(problem, sum(bracket) / 2, limits=limits)
            except UserError:  # the limits leave nothing of that size
                return

    def _fits(self, assignment: Assignment) -> bool:
        """Whether the file keeps the budget, as it will be and not as predicted."""
        budget = self.config.budget
        return not budget or self.weigh(self.problem.policy(assignment)) <= (1 - _SPARE) * budget

    def _within_budget(self, problem: Problem) -> Assignment:
        """The best policy whose file keeps the budget. Raises UserError where there is none.

        Predicted sizes lack what a mixture of formats brings along: what the last policy's lacked is taken
        off the budget of the next.
        """
        limits, target = self.config.bounds, (1 - _SPARE) * self.config.budget
        aim = target
        while True:
            found = ilp(problem, aim, limits=limits)
            lacking = self.weigh(problem.policy(found)) - problem.size(found)
            if problem.size(found) + lacking <= target:
                break
            aim = min(target - lacking, aim - 1)
        # The policies before may have had more formats: what this one lacks is less.
        if target - lacking > aim:
            larger = ilp(problem, target - lacking, limits=limits)
            found = larger if self._fits(larger) else found
        return found

    def _axes(self) -> list[str]:
        """Resources that fronts are swept over: bytes, and bit operations where they are an objective."""
        wanted = {part.strip() for part in self.config.objectives.split(",")}
        axes: list[str] = [name for name in ("bytes", "bops") if name in wanted]
        return axes or ["bytes"]

    def _bracket(self) -> tuple[float, float] | None:
        """Sizes of the largest candidate below the floor and the smallest one at it."""
        kind, floor = reading_of(self.metric), self.config.metric_floor
        known = [c for c in self.measured() if kind.name in c.metrics and c.bytes and c.mode == self.mode]
        good = [c.bytes for c in known if c.complete and kind.gap(c.metrics[kind.name], floor) <= 0]
        if not good:
            return None
        high = min(good)
        bad = [c.bytes for c in known if kind.gap(c.metrics[kind.name], floor) > 0 and c.bytes < high]
        low = max(bad, default=budgets(self.problem, 1)[0] - 1)
        return (low, high) if high - low > 0.005 * high else None

    def _shapley(self) -> Iterator[tuple[str, Assignment]]:
        """SMPQ: its own policy by alpha, and the size-constrained front by Shapley values."""
        state = self.shapley_state()
        if state.count == 0:
            return
        by_size = value_problem(self.problem, state)
        if not self._bounds():
            yield "shapley-alpha", state.policy
        yield from self._program(by_size, "shapley")

    def shapley_state(self) -> ShapleyState:
        """All walks that the configuration asks for, or as many as half of the time left allows."""
        state = ShapleyState.empty(self.problem)
        end = time.monotonic() + _EVOLUTION_SHARE * self._left()
        count = self.config.permutations
        for index, walk in enumerate(walks(self.problem, count, self.config.seed)):
            key = f"{self.mode}|{index}"
            held = self.space.journal.get(_SHAPLEY_RECORD, key)
            if held is None:
                if state.count and time.monotonic() > end:
                    self.cut_short = True
                    break
                held = [list(step) for step in play(walk, lambda a: self.space.mse(self.problem, a))]
                self.space.journal.append(_SHAPLEY_RECORD, key, held)
            state = state.update([Step(*step) for step in held])
            self.space.progress("permutations", index + 1, count)
        self.shapley = state
        return state

    def _nsga2(self) -> Iterator[tuple[str, Assignment]]:
        bounds = self._bounds()
        seeds = [a for over in self._axes() for a in ilp_front(self.problem, 8, over, bounds)]
        sweep = [a for _, a in threshold_front(self.problem, 6)]
        seeds += [a for a in (*self._uniform(), *sweep) if self.problem.within(a, bounds)]
        yield from self._evolved(self.problem, seeds)

    def _evolved(self, problem: Problem, seeds: list[Assignment]) -> Iterator[tuple[str, Assignment]]:
        end = time.monotonic() + _EVOLUTION_SHARE * self._left()
        rounds, bounds = iter(range(10**6)), self._bounds()

        def stop() -> bool:
            self.space.progress("generations", min(next(rounds), self.config.generations), 0)
            late = time.monotonic() > end
            self.cut_short = self.cut_short or late
            return late

        found = evolve(
            problem,
            seeds,
            lambda assignment: self.space.mse(problem, assignment),
            generations=self.config.generations,
            seed=self.config.seed,
            stop=stop,
            over=self._axes()[0],
            allowed=lambda assignment: self.problem.within(assignment, bounds),
        )
        found = [entry for entry in found if self._fits(entry.assignment)]
        sizes = np.array([entry.spent for entry in found], np.float64)
        if not len(sizes):
            yield from (("nsga2", seed) for seed in _spread(seeds) if self._fits(seed))
            return
        wanted = np.linspace(sizes[0], sizes[-1], self.config.front)
        chosen = sorted({int(np.abs(sizes - size).argmin()) for size in wanted})
        yield from (("nsga2", a) for a in _spread([found[index].assignment for index in chosen]))

    def _auto(self) -> Iterator[tuple[str, Assignment]]:
        seeds: list[Assignment] = []
        for source in (self._program(self.problem, "ilp"), self._threshold()):
            for entry in source:
                seeds.append(entry[1])
                yield entry
        if self.problem.count < 2 or not self._enough_time():
            return
        paired = self._paired()
        for entry in self._program(paired, "ilp-pairs"):
            seeds.append(entry[1])
            yield entry
        if not self.config.budget and self._enough_time():
            yield from self._evolved(paired, [*self._uniform(), *seeds[: 3 * self.config.front]])

    def _uniform(self) -> list[Assignment]:
        """Every layer in the same choice: what mixed precision has to beat."""
        return [self.problem.uniform(index) for index in range(self.problem.finest + 1)]


def _thinned(front: list[Assignment], count: int) -> list[Assignment]:
    """At most `count` of a front, its ends among them."""
    if len(front) <= count:
        return front
    return [front[int(at)] for at in np.unique(np.linspace(0, len(front) - 1, count).astype(int))]


def _spread(front: list[Assignment]) -> Iterator[Assignment]:
    """A front's ends first, then its middles, so that any beginning of it is spread over the sizes."""
    yield from (front[index] for index in coarse_to_fine(range(len(front))))
