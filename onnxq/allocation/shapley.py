"""Strategy `shapley`: SMPQ's cooperative game over (layer, choice), sampled by permutations between policies.

Players are (l, k), k above a layer's cheapest choice. The value of a policy is taken in logit space,

    V(P) = -ln MSE(P),   MSE: of the logits against float, on calibration data.

SMPQ lets any coalition play: a layer runs at the highest of its players that have joined. Post-training that
game says nothing. Most coalitions are ruined networks, and the rule itself takes away what low bit-widths are
worth: a player that joins below a higher one contributes 0, whereas the highest one, leaving among gaps,
answers for the fall to the bottom (benchmarks/RESULTS.md has figures). Here a permutation is a walk between
two feasible policies, from a fine one to a coarse one, both from the integer program on sensitivities that
were perturbed at random: the layers in which they differ change over one by one in random order. Every
coalition on the way is a mix of two policies that somebody might use, and every step has a price. Walks come
in antithetic pairs (the same two policies, the order reversed). A walk is truncated where the MSE has risen
above `CEILING` times that of its start; players that it did not reach were not seen by it (SMPQ counts 0).

A step of layer l from choice a to b is shared by the players between them, in the shares that the
sensitivities S predict. psi[l, k] is the mean of what player (l, k) is worth, in ln MSE. A few walks know one
player of many poorly, so the size-constrained variant corrects S by one factor a layer, drawn towards 1:

    S'[l, k] = S[l, k] * (1 + sum of observed steps of l) / (1 + sum of those that S predicts)

With no walks this is the integer program on S; a layer whose errors add up with those of others, or hide in
them, moves away from it as evidence gathers.

Momentum (SMPQ, section 3) over phi[l, k] = S'[l, 0] - S'[l, k] - price * (bytes[l, k] - bytes[l, 0]), the
accuracy-complexity trade-off of choice k; price: MSE per byte between the ends of the walks (per bit
operation where activations are searched as well).
q_j = beta q_{j-1} + lambda phi / |phi|, alpha_j = alpha_{j-1} + xi q_j / |q_j|; per layer the largest alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxq.allocation.ilp import ilp
from onnxq.allocation.problem import Assignment, Problem

__all__ = [
    "BETA",
    "CEILING",
    "LAMBDA",
    "XI",
    "ShapleyState",
    "Step",
    "Walk",
    "play",
    "value_problem",
    "walks",
]

Table = npt.NDArray[np.float64]
BETA, LAMBDA, XI = 0.8, 0.2, 0.1
CEILING = 30.0
# Where walks start and end, between the smallest file (0) and that of the finest choices (1).
_FINE, _COARSE = (0.45, 0.85), (0.05, 0.4)
# Spread of the random factor on each sensitivity, in ln.
_PERTURBATION = 0.5
# Evidence, in ln MSE, that counts as much as the sensitivities do.
_PRIOR = 1.0
_LEAST_FACTOR = 0.1


class Walk(NamedTuple):
    """A permutation: the layers in which two policies differ, in the order in which they change over."""

    start: Assignment
    end: Assignment
    order: list[int]


class Step(NamedTuple):
    """One layer's change of choice on a walk, with the logit MSE before and after it."""

    layer: int
    left: int
    taken: int
    before: float
    after: float


def walks(problem: Problem, count: int, seed: int) -> Iterator[Walk]:
    """`count` walks in antithetic pairs, the same for the same seed."""
    rng = np.random.default_rng(seed)
    walk = Walk(problem.uniform(0), problem.uniform(0), [])
    for index in range(count):
        if index % 2:
            yield walk._replace(order=walk.order[::-1])
            continue
        start, end = (_feasible(problem, rng.uniform(*share), rng) for share in (_FINE, _COARSE))
        walk = Walk(start, end, rng.permutation(np.flatnonzero(start != end)).tolist())
        yield walk


def _feasible(problem: Problem, share: float, rng: np.random.Generator) -> Assignment:
    """The integer program's choice at a size, on sensitivities that are off by random factors."""
    resource = problem.resources[_axis(problem)]
    low, high = resource.least, resource.of(problem.uniform(problem.finest))
    noise = np.exp(rng.normal(0, _PERTURBATION, problem.cost.shape))
    noisy = replace(problem, cost=problem.cost * noise, correlation=np.zeros(0))
    noisy = replace(noisy, cost=_costs(noisy))
    return ilp(noisy, limits={_axis(problem): low + max(share, 1e-6) * (high - low)})


def _is_ladder(problem: Problem) -> bool:
    """Whether every choice is finer than all before it: not where activations are searched as well."""
    return len({choice.activations for choice in problem.choices if not choice.is_float}) < 2


def _axis(problem: Problem) -> str:
    """What policies spend: bytes, or bit operations where activations are searched as well."""
    return "bytes" if _is_ladder(problem) else "bops"


def _costs(problem: Problem) -> Table:
    """Sensitivities; on a ladder no choice is dearer than one below it."""
    if not _is_ladder(problem):
        return problem.cost
    return np.asarray(np.minimum.accumulate(problem.cost, axis=1), np.float64)


def play(walk: Walk, mse: Callable[[Assignment], float]) -> list[Step]:
    """The steps of a walk up to its end or its truncation. mse: logit MSE of an assignment, int [L]."""
    held, value = walk.start.copy(), mse(walk.start)
    begin, steps = value, list[Step]()
    for layer in walk.order:
        if value > CEILING * begin:
            break
        held = held.copy()
        left, held[layer] = int(held[layer]), walk.end[layer]
        before, value = value, mse(held)
        steps.append(Step(layer, left, int(walk.end[layer]), before, value))
    return steps


@dataclass(frozen=True)
class ShapleyState:
    """After some walks: per player [L, K] sums of marginals, of squares, of what S predicts, and of visits.

    drop, saved: MSE gained and bytes (or bit operations) given up along all walks. changes: the relative
    change of psi with each walk.
    """

    problem: Problem
    count: int
    observed: Table
    squares: Table
    expected: Table
    seen: Table
    momentum: Table
    alpha: Table
    drop: float = 0.0
    saved: float = 0.0
    changes: tuple[float, ...] = field(default=())

    @classmethod
    def empty(cls, problem: Problem) -> ShapleyState:
        zero = np.zeros(problem.cost.shape)
        return cls(problem, 0, zero, zero, zero, zero, zero, zero)

    @property
    def psi(self) -> Table:
        """Estimated Shapley values in ln MSE [L, K]; 0 for each layer's first choice and for the unseen."""
        return np.asarray(self.observed / np.maximum(self.seen, 1), np.float64)

    @property
    def interval(self) -> Table:
        """Half the width of the 95 % confidence interval of psi [L, K]; infinite if seen less than twice."""
        count = np.maximum(self.seen, 2)
        variance = np.maximum(self.squares / count - np.square(self.observed / count), 0)
        return np.where(self.seen < 2, np.inf, 1.96 * np.sqrt(variance / (count - 1)))

    @property
    def factors(self) -> Table:
        """What the walks say of each layer's sensitivities, [L]: 1 where nothing or nothing else."""
        observed, expected = self.observed.sum(axis=1), self.expected.sum(axis=1)
        return np.asarray(np.maximum((_PRIOR + observed) / (_PRIOR + expected), _LEAST_FACTOR), np.float64)

    @property
    def policy(self) -> Assignment:
        """SMPQ's own: per layer the choice of largest alpha."""
        return np.asarray(self.alpha.argmax(axis=1), np.int64)

    def update(self, steps: Sequence[Step]) -> ShapleyState:
        """The state after one more walk."""
        spent = self.problem.resources[_axis(self.problem)].table
        tables = [held.copy() for held in (self.observed, self.squares, self.expected, self.seen)]
        drop, saved = self.drop, self.saved
        for step in steps:
            players, sign, gains = self._players(step)
            whole = float(gains.sum())
            shares = gains / whole if whole > 0 else np.full(len(gains), 1 / len(gains))
            marginals = sign * shares * float(np.log(max(step.after, 1e-30) / max(step.before, 1e-30)))
            expected = gains / max((step.before + step.after) / 2, 1e-30)
            added = (marginals, np.square(marginals), expected, np.ones(len(gains)))
            for table, value in zip(tables, added, strict=True):
                table[step.layer, players] += value
            drop += step.after - step.before
            saved += float(spent[step.layer, step.left] - spent[step.layer, step.taken])
        held = replace(
            self,
            count=self.count + 1,
            observed=tables[0],
            squares=tables[1],
            expected=tables[2],
            seen=tables[3],
            drop=drop,
            saved=saved,
        )
        norm = float(np.linalg.norm(held.psi))
        change = float(np.linalg.norm(held.psi - self.psi)) / norm if norm else 0.0
        return replace(held._with_momentum(), changes=(*self.changes, change))

    def _players(self, step: Step) -> tuple[slice, float, Table]:
        """The players of a step, whether they leave (1) or join (-1), and what S says of each, [players]."""
        cost = _costs(self.problem)[step.layer]
        if _is_ladder(self.problem):
            low, high = sorted((step.left, step.taken))
            sign = 1.0 if step.taken < step.left else -1.0
            return slice(low + 1, high + 1), sign, cost[low:high] - cost[low + 1 : high + 1]
        coarse, fine = sorted((step.left, step.taken), key=lambda k: (-cost[k], k))
        sign = 1.0 if step.taken == coarse else -1.0
        return slice(fine, fine + 1), sign, np.array([cost[coarse] - cost[fine]])

    def _with_momentum(self) -> ShapleyState:
        cost, spent = (
            value_problem(self.problem, self).cost,
            self.problem.resources[_axis(self.problem)].table,
        )
        price = max(self.drop, 0.0) / self.saved if self.saved > 0 else 0.0
        phi = cost[:, :1] - cost - price * (spent - spent[:, :1])
        norm = float(np.linalg.norm(phi))
        momentum = BETA * self.momentum + (LAMBDA * phi / norm if norm else 0.0)
        length = float(np.linalg.norm(momentum))
        alpha = self.alpha + (XI * momentum / length if length else 0.0)
        return replace(self, momentum=momentum, alpha=alpha)


def value_problem(problem: Problem, state: ShapleyState) -> Problem:
    """The problem with sensitivities as the walks correct them, for the size-constrained variant."""
    return replace(problem, cost=_costs(problem) * state.factors[:, None], correlation=np.zeros(0))
