"""Strategy `shapley`: SMPQ's cooperative game over (layer, bit-width), sampled by permutations.

Players o = (l, k) for every choice k above a layer's cheapest; in a coalition a layer runs at the highest of
its players, at its cheapest choice without any. The value of a coalition S is taken in logit space,

    V(S) = -MSE(S),   MSE: of the logits against float, on calibration data,

which still tells bad policies apart where accuracy is zero for all of them, and which is nearly additive
where the network still works, so that few permutations say much. psi_o = mean of V(S + o) - V(S).

Each permutation starts from a feasible coalition (the players up to the choice below the finest) and walks
both ways: upwards, adding the players that are missing in the order of the permutation, and downwards,
removing those that are present. Permutations come in antithetic pairs (each with its reverse). A walk is
truncated where the MSE has risen above `ceiling` times the start's. A player that a walk did not reach was
not seen by it: psi is the mean over the walks that saw it (SMPQ counts 0, which in a downward walk would say
that it is free to leave). Joining or leaving below a higher player of the same layer changes nothing and
costs nothing.

Momentum (SMPQ, section 3): q_k = beta q_{k-1} + lambda psi / |psi|, alpha_k = alpha_{k-1} + xi q_k / |q_k|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from onnxq.allocation.problem import Assignment, Problem

__all__ = ["Game", "ShapleyState", "permutations", "play", "value_problem"]

Table = npt.NDArray[np.float64]
BETA, LAMBDA, XI = 0.8, 0.2, 0.1
_CEILING = 30.0


@dataclass(frozen=True)
class Game:
    """layers, choices: of the search space (float left out). start: the choice that walks begin at."""

    layers: int
    choices: int
    start: int
    ceiling: float = _CEILING

    @property
    def players(self) -> list[tuple[int, int]]:
        return [(layer, k) for layer in range(self.layers) for k in range(1, self.choices)]


@dataclass(frozen=True)
class ShapleyState:
    """After some permutations: sums of marginals and of squares, how many saw a player; alpha [L, K].

    changes: the relative change of psi at each step.
    """

    count: int
    total: Table
    squares: Table
    seen: Table
    momentum: Table
    alpha: Table
    changes: tuple[float, ...] = field(default=())

    @classmethod
    def empty(cls, game: Game) -> ShapleyState:
        zero = np.zeros((game.layers, game.choices))
        return cls(0, zero, zero, zero, zero, zero)

    @property
    def psi(self) -> Table:
        """Estimated Shapley values [L, K]; 0 for each layer's cheapest choice and for what was never seen."""
        return np.asarray(self.total / np.maximum(self.seen, 1), np.float64)

    @property
    def interval(self) -> Table:
        """Half the width of the 95 % confidence interval of psi [L, K]; infinite if seen less than twice."""
        count = np.maximum(self.seen, 2)
        variance = np.maximum(self.squares / count - np.square(self.total / count), 0) * count / (count - 1)
        return np.where(self.seen < 2, np.inf, 1.96 * np.sqrt(variance / count))

    def update(self, marginals: Table) -> ShapleyState:
        """The state after one more permutation; marginals [L, K], NaN for players that it did not see."""
        visited = np.isfinite(marginals)
        added = np.where(visited, marginals, 0.0)
        before = self.psi
        held = replace(
            self,
            count=self.count + 1,
            total=self.total + added,
            squares=self.squares + np.square(added),
            seen=self.seen + visited,
        )
        after = held.psi
        norm = float(np.linalg.norm(after))
        momentum = BETA * self.momentum + (LAMBDA * after / norm if norm else 0.0)
        length = float(np.linalg.norm(momentum))
        alpha = self.alpha + (XI * momentum / length if length else 0.0)
        change = float(np.linalg.norm(after - before)) / norm if norm else 0.0
        return replace(held, momentum=momentum, alpha=alpha, changes=(*self.changes, change))

    @property
    def policy(self) -> Assignment:
        """SMPQ's own: per layer the choice of largest alpha."""
        return np.asarray(self.alpha.argmax(axis=1), np.int64)


def permutations(game: Game, count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """`count` orders of the players in antithetic pairs, the same for the same seed."""
    rng = np.random.default_rng(seed)
    previous = None
    for index in range(count):
        if index % 2 == 0 or previous is None:
            previous = rng.permutation(len(game.players)).astype(np.int64)
            yield previous
        else:
            yield previous[::-1]


def play(game: Game, order: npt.NDArray[np.int64], mse: Callable[[Assignment], float]) -> Table:
    """Marginal contributions [L, K] of every player in one permutation; NaN for those it did not reach.

    mse: logit MSE of an assignment, int [L].
    """
    players = game.players
    marginals = np.full((game.layers, game.choices), np.nan)
    begin = mse(np.full(game.layers, game.start, np.int64))
    for upward in (True, False):
        joined = np.zeros((game.layers, game.choices), np.bool_)
        joined[:, : game.start + 1] = True
        held = begin
        for player in order if upward else order[::-1]:
            layer, k = players[int(player)]
            if (k > game.start) != upward:
                continue
            if held > game.ceiling * begin:
                break
            before = _level(joined)
            joined[layer, k] = upward
            now = _level(joined)
            if (before == now).all():
                marginals[layer, k] = 0.0
                continue
            reached = mse(now)
            marginals[layer, k] = held - reached if upward else reached - held
            held = reached
    return marginals


def _level(joined: npt.NDArray[np.bool_]) -> Assignment:
    """The highest player of every layer; the cheapest choice always counts as joined."""
    held = joined.copy()
    held[:, 0] = True
    levels: Assignment = held.shape[1] - 1 - held[:, ::-1].argmax(axis=1)
    return levels.astype(np.int64)


def value_problem(problem: Problem, state: ShapleyState) -> Problem:
    """The problem with Shapley values in the place of sensitivities, for the size-constrained variant.

    What a layer gains at choice k is the sum of its players up to k; its cost is what it lacks of the most.
    Players that no walk has seen take what the sensitivities say, times the median ratio of the two where
    both are known. Float, which is no player, costs what the finest choice does.
    """
    choices = state.psi.shape[1]
    expected = np.zeros_like(state.psi)
    expected[:, 1:] = np.maximum(problem.cost[:, : choices - 1] - problem.cost[:, 1:choices], 0)
    known = (state.seen > 0) & (expected > 0)
    ratio = float(np.median(state.psi[known] / expected[known])) if known.any() else 1.0
    values = np.where(state.seen > 0, state.psi, expected * (ratio if ratio > 0 else 1.0))
    gains = np.cumsum(np.maximum(values, 0) * (np.arange(choices) > 0), axis=1)
    costs = gains.max(axis=1, keepdims=True) - gains
    missing = problem.cost.shape[1] - choices
    if missing:
        costs = np.concatenate([costs, np.repeat(costs[:, -1:], missing, axis=1)], axis=1)
    return replace(problem, cost=costs, correlation=np.zeros(0))
