"""Strategy `ranking`: TuneQn's selective quantization.

Layers are ranked by their combined error, largest first; each step moves one more layer, in that
order, from the present scheme to the next one of the ladder. With the ladder (int8, float) that is
TuneQn: from fully quantized to float, one more layer excluded per step. A longer ladder, (int4, int8,
float), walks down to int8 first and on to float then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxq.search.layer_errors import LayerErrors
from passes.policy import LayerPolicy, Policy

__all__ = ["Proposal", "coarse_to_fine", "rank", "ranking_proposals", "spread", "thinned"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Proposal:
    """A policy to measure. changed: layers moved up the ladder so far, in order."""

    name: str
    strategy: str
    step: int
    mode: str
    policy: Policy
    changed: tuple[str, ...]


def rank(errors: Sequence[LayerErrors]) -> list[str]:
    """Layer names, worst combined error first; ties in graph order."""
    order = sorted(range(len(errors)), key=lambda index: (-errors[index].score, index))
    return [errors[index].layer for index in order]


def ranking_proposals(mode: str, ladder: Sequence[LayerPolicy], order: Sequence[str]) -> list[Proposal]:
    """Every step of one mode. ladder: schemes from cheapest to float; order: layers, worst first.

    The last step, everything float, is left out: it is the float model itself.
    """
    policy = Policy(dict.fromkeys(order, ladder[0]))
    proposals = [Proposal(f"{mode}-000", "ranking", 0, mode, policy, ())]
    for target in ladder[1:]:
        for moved, name in enumerate(order, start=1):
            policy = policy.set([name], target)
            step = len(proposals)
            proposals.append(
                Proposal(f"{mode}-{step:03d}", "ranking", step, mode, policy, tuple(order[:moved]))
            )
    if ladder[-1].is_float and len(ladder) > 1:
        proposals.pop()
    return proposals


def coarse_to_fine(proposals: Sequence[_Item]) -> Iterator[_Item]:
    """The same proposals, ends first, then middles: any prefix is spread over the whole range."""
    seen: set[int] = set()
    last = len(proposals) - 1
    if last < 0:
        return
    stride = 1
    while stride <= max(last, 1) * 2:
        for index in range(stride + 1):
            position = round(index * last / stride)
            if position not in seen:
                seen.add(position)
                yield proposals[position]
        stride *= 2


def spread(front: Sequence[_Item]) -> Iterator[_Item]:
    """A front's ends first, then its middles, so that any beginning of it is spread over the sizes."""
    yield from (front[index] for index in coarse_to_fine(range(len(front))))


def thinned(front: list[_Item], count: int) -> list[_Item]:
    """At most `count` of a front, its ends among them."""
    if len(front) <= count:
        return front
    return [front[int(at)] for at in np.unique(np.linspace(0, len(front) - 1, count).astype(int))]
