"""The strategies that spend bits by a table of sensitivities: what they propose, one after the other.

Each is a generator of proposals; it may look at what was measured before it goes on, and everything expensive
that it does is in the journal, so that a resumed run takes the same way. `auto` goes from cheap to dear: the
integer program's front, the threshold's, the integer program with interactions of neighbours, and an
evolution that starts from all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.allocation.ilp import budgets, ilp, ilp_front
from onnxq.allocation.nsga2 import evolve
from onnxq.allocation.problem import Assignment, Problem
from onnxq.allocation.shapley import Game, ShapleyState, permutations, play, value_problem
from onnxq.allocation.threshold import threshold, threshold_front
from onnxq.search.candidate import Candidate
from onnxq.search.objectives import metric_named
from onnxq.search.ranking import Proposal, coarse_to_fine
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.space import Space
from passes.errors import UserError

__all__ = ["Allocator"]

_SHAPLEY_RECORD = "permutation"
_FLOOR_STEPS = 5
_FINE_SWEEP = 1000
# Of a time budget: what sensitivities may take, and when what is left no longer pays for another method.
_EVOLUTION_SHARE = 0.5
_LEAST_LEFT_S = 20.0


@dataclass
class Allocator:
    """Proposals of one mode's strategy.

    measured: the candidates of the run so far. deadline: on time.monotonic's clock. cut_short: whether it was
    the reason to leave something out.
    """

    mode: str
    config: TuneConfig
    problem: Problem
    space: Space
    metric: str
    measured: Callable[[], Sequence[Candidate]]
    deadline: float | None = None
    cut_short: bool = False

    def proposals(self) -> Iterator[Proposal]:
        """Different policies, in the order of their worth."""
        strategy = self.config.chosen_strategy
        source = getattr(self, f"_{strategy}")()
        seen: set[bytes] = set()
        step = 0
        for name, assignment in source:
            if assignment.tobytes() in seen:
                continue
            seen.add(assignment.tobytes())
            policy = self.problem.policy(assignment)
            yield Proposal(f"{self.mode}-{step:03d}", name, step, self.mode, policy, ())
            step += 1

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
        if self.config.budget:
            # The sweep is finer than a front: the one that uses most of the budget is wanted.
            sweep = (a for _, a in threshold_front(self.problem, _FINE_SWEEP))
            fitting = [a for a in sweep if self.problem.size(a) <= self.config.budget]
            yield from (("threshold", a) for a in sorted(fitting, key=self.problem.size)[-1:])
            return
        front = [assignment for _, assignment in threshold_front(self.problem, self.config.front)]
        yield from (("threshold", a) for a in _spread(front))

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
        if self.config.budget:
            yield name, ilp(problem, self.config.budget)
            return
        yield from ((name, a) for a in _spread(list(ilp_front(problem, self.config.front))))
        if not self.config.metric_floor:
            return
        for _ in range(_FLOOR_STEPS):
            bracket = self._bracket()
            if bracket is None:
                return
            yield name, ilp(problem, sum(bracket) / 2)

    def _bracket(self) -> tuple[int, int] | None:
        """Sizes of the largest candidate below the floor and the smallest one at it."""
        kind, floor = metric_named(self.metric), self.config.metric_floor
        known = [c for c in self.measured() if self.metric in c.metrics and c.bytes and c.mode == self.mode]
        good = [c.bytes for c in known if c.complete and kind.gap(c.metrics[self.metric], floor) <= 0]
        if not good:
            return None
        high = min(good)
        bad = [c.bytes for c in known if kind.gap(c.metrics[self.metric], floor) > 0 and c.bytes < high]
        low = max(bad, default=budgets(self.problem, 1)[0] - 1)
        return (low, high) if high - low > 0.005 * high else None

    def _shapley(self) -> Iterator[tuple[str, Assignment]]:
        """SMPQ: its own policy by alpha, and the size-constrained front by Shapley values."""
        state = self.shapley_state()
        if state.count == 0:
            return
        by_size = value_problem(self.problem, state)
        if self.config.budget:
            yield "shapley", ilp(by_size, self.config.budget)
            return
        yield "shapley-alpha", state.policy
        yield from (("shapley", a) for a in _spread(list(ilp_front(by_size, self.config.front))))

    def shapley_state(self) -> ShapleyState:
        """All permutations that the configuration asks for, or as many as half of the time left allows."""
        choices = self.problem.finest + 1
        if choices < 2:
            raise UserError("--strategy shapley: needs at least two --weights schemes that are not float")
        game = Game(self.problem.count, choices, choices - 2)
        state = ShapleyState.empty(game)
        end = time.monotonic() + _EVOLUTION_SHARE * self._left()
        count = self.config.permutations
        for index, order in enumerate(permutations(game, count, self.config.seed)):
            key = f"{self.mode}|{index}"
            held = self.space.journal.get(_SHAPLEY_RECORD, key)
            if held is None:
                if state.count and time.monotonic() > end:
                    self.cut_short = True
                    break
                walk = play(game, order, lambda a: self.space.mse(self.problem, a))
                # JSON has no NaN: null stands for a player that the walk did not see.
                held = [[None if np.isnan(v) else v for v in row] for row in walk.tolist()]
                self.space.journal.append(_SHAPLEY_RECORD, key, held)
            state = state.update(np.array(held, np.float64))
            self.space.progress("permutations", index + 1, count)
        return state

    def _nsga2(self) -> Iterator[tuple[str, Assignment]]:
        seeds = [*ilp_front(self.problem, 8), *self._uniform()]
        seeds += [a for _, a in threshold_front(self.problem, 6)]
        yield from self._evolved(self.problem, seeds)

    def _evolved(self, problem: Problem, seeds: list[Assignment]) -> Iterator[tuple[str, Assignment]]:
        end = time.monotonic() + _EVOLUTION_SHARE * self._left()
        rounds = iter(range(10**6))

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
        )
        sizes = np.array([entry.bytes for entry in found], np.float64)
        if not len(sizes):
            yield from (("nsga2", seed) for seed in _spread(seeds))
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


def _spread(front: list[Assignment]) -> Iterator[Assignment]:
    """A front's ends first, then its middles, so that any beginning of it is spread over the sizes."""
    yield from (front[index] for index in coarse_to_fine(range(len(front))))
