"""Strategy `threshold`: GSE-MIX (GSE-MN4, section 4): for each layer the least bits with S < tau."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.allocation.problem import Assignment, Problem
from passes.core.errors import UserError

__all__ = ["PAPER_BITS", "threshold", "threshold_front"]

PAPER_BITS = (4, 6, 8)


def threshold(problem: Problem, tau: float, bits: Sequence[int] = ()) -> Assignment:
    """The cheapest choice of each layer with cost below tau; the finest one where none is.

    bits: the weight bits that are candidates, all but float by default. Raises UserError for tau <= 0 and for
    bits of which the search space has none.
    """
    if not tau > 0:
        raise UserError(f"`tau` {tau:g}: must be above 0")
    allowed = [
        index
        for index, choice in enumerate(problem.choices)
        if not choice.is_float and (not bits or choice.weights.bits in bits)
    ]
    if not allowed:
        raise UserError(f"the search space has no choice of {', '.join(map(str, bits))} bits")
    below = problem.cost[:, allowed] < tau
    first = np.where(below.any(axis=1), below.argmax(axis=1), len(allowed) - 1)
    return np.array(allowed, np.int64)[first]


def threshold_front(problem: Problem, count: int, bits: Sequence[int] = ()) -> list[tuple[float, Assignment]]:
    """(tau, assignment) of a sweep: at most `count` different ones, spread over the sizes, smallest first."""
    levels = np.unique(problem.cost[problem.cost > 0])
    taus = [float(level) * (1 + 1e-9) for level in levels] or [1.0]
    found: dict[bytes, tuple[float, Assignment]] = {}
    for tau in taus:
        assignment = threshold(problem, tau, bits)
        found.setdefault(assignment.tobytes(), (tau, assignment))
    every = sorted(found.values(), key=lambda entry: (problem.size(entry[1]), -entry[0]))
    if len(every) <= count:
        return every
    sizes = np.array([problem.size(assignment) for _, assignment in every], np.float64)
    wanted = np.linspace(sizes[0], sizes[-1], count)
    chosen = sorted({int(np.abs(sizes - size).argmin()) for size in wanted})
    return [every[index] for index in chosen]
