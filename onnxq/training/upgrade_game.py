"""SMPQ's coalition game over (layer, bit-width) as in the paper, for a supernet trained to play it.

Players o = (l, k) for every width k above a layer's cheapest; in a coalition a layer runs at the highest of
its players, at its cheapest width without any. psi_o = mean of V(S + o) - V(S). A trained supernet works at
every width, so that coalitions have values that say something; post-training they do not, and
onnxq/allocation/shapley.py plays another game.

Each permutation starts from a feasible coalition and walks both ways: upwards, adding the players that are
missing in the order of the permutation, and downwards, removing those that are present. Permutations come in
antithetic pairs (each with its reverse). A walk is truncated where the loss has risen above `ceiling` times
the start's; a player that a walk did not reach was not seen by it. Joining or leaving below a higher player
of the same layer changes nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.allocation.problem import Assignment

__all__ = ["Game", "permutations", "play"]

Table = npt.NDArray[np.float64]
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


def play(game: Game, order: npt.NDArray[np.int64], loss: Callable[[Assignment], float]) -> Table:
    """Marginal contributions [L, K] of every player in one permutation; NaN for those it did not reach.

    loss: of an assignment, int [L].
    """
    players = game.players
    marginals = np.full((game.layers, game.choices), np.nan)
    begin = loss(np.full(game.layers, game.start, np.int64))
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
            reached = loss(now)
            marginals[layer, k] = held - reached if upward else reached - held
            held = reached
    return marginals


def _level(joined: npt.NDArray[np.bool_]) -> Assignment:
    """The highest player of every layer; the cheapest choice always counts as joined."""
    held = joined.copy()
    held[:, 0] = True
    levels: Assignment = held.shape[1] - 1 - held[:, ::-1].argmax(axis=1)
    return levels.astype(np.int64)
