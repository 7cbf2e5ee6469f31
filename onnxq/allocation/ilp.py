"""Strategy `ilp`: the assignment of least predicted damage under bytes (and BOPs), by scipy's milp (HiGHS).

    minimise   sum_lk cost[l, k] x[l, k]  (+ sum_l sum_ab I[l, a, b] y[l, a, b])
    subject to sum_k x[l, k] = 1,   sum_lk bytes[l, k] x[l, k] <= budget,   x binary

I[l, a, b] = 2 rho_l sqrt(cost[l, a] cost[l + 1, b]) is what neighbours add or take away when both are
quantized: their errors e, e' at the logits give |e + e'|^2 = |e|^2 + |e'|^2 + 2 rho |e| |e'|. rho_l comes
from one measured pair. The products y = x x' are tied by sum_b y[l, a, b] = x[l, a] and sum_a y[l, a, b] =
x[l + 1, b], which for a chain is as tight as it gets.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack

from onnxq.allocation.problem import Assignment, Problem
from passes.errors import UserError

__all__ = ["budgets", "ilp", "ilp_front"]

Vector = npt.NDArray[np.float64]
_GAP = 1e-4
_NODES = 5000


def ilp(problem: Problem, budget: float, *, bops: float = 0.0) -> Assignment:
    """The best assignment whose file takes at most `budget` bytes (and `bops` bit operations, 0 for any).

    Raises UserError when none fits.
    """
    budget = math.floor(budget)  # sizes are whole bytes; the solver has a tolerance
    least = problem.size(_cheapest(problem))
    if least > budget:
        raise UserError(
            f"--budget {budget / 1e6:.3f}MB: the smallest file of this search space takes "
            f"{least / 1e6:.3f} MB"
        )
    L, K = problem.cost.shape
    pairs = [at for at in range(L - 1) if problem.correlation.size and problem.correlation[at] != 0]
    n = L * K
    total = n + len(pairs) * K * K
    objective = np.concatenate([problem.cost.ravel(), *(_interaction(problem, at).ravel() for at in pairs)])
    scale = max(float(np.abs(objective).max()), 1e-30)
    rows = [_one_each(L, K, total)]
    low, high = [np.ones(L)], [np.ones(L)]
    for matrix, bound in ((problem.bytes, budget - problem.rest), (problem.bops, bops)):
        if matrix is problem.bops and bops <= 0:
            continue
        unit = max(float(matrix.max()), 1.0)
        rows.append(_row(matrix.ravel() / unit, total))
        low.append(np.array([-np.inf]))
        high.append(np.array([bound / unit]))
    for position, at in enumerate(pairs):
        rows.append(_ties(at, n + position * K * K, K, total))
        low.append(np.zeros(2 * K))
        high.append(np.zeros(2 * K))
    integrality = np.concatenate([np.ones(n), np.zeros(total - n)])
    with warnings.catch_warnings(), _quiet():
        # scipy warns for every option that it hands through to HiGHS.
        warnings.simplefilter("ignore")
        solved = milp(
            objective / scale,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(vstack(rows).tocsr(), np.concatenate(low), np.concatenate(high)),
            # Presolve gains nothing on these, and lets HiGHS print more.
            options={"mip_rel_gap": _GAP, "node_limit": _NODES, "presolve": False},
        )
    if solved.x is None:
        raise UserError(f"no policy of this search space fits {budget / 1e6:.3f} MB and {bops:g} BOPs")
    return np.asarray(solved.x[:n].reshape(L, K).argmax(axis=1), np.int64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what HiGHS prints, whatever its options say, out of stdout, where --json writes its document."""
    sys.stdout.flush()
    try:
        held = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(held, 1)
        os.close(held)


def _cheapest(problem: Problem) -> Assignment:
    return np.asarray(problem.bytes.argmin(axis=1), np.int64)


def _interaction(problem: Problem, at: int) -> Vector:
    roots = np.sqrt(np.maximum(problem.cost[at : at + 2], 0))
    products: Vector = 2 * problem.correlation[at] * np.outer(roots[0], roots[1])
    return products


def _one_each(L: int, K: int, total: int) -> Any:
    return coo_array((np.ones(L * K), (np.repeat(np.arange(L), K), np.arange(L * K))), shape=(L, total))


def _row(values: Vector, total: int) -> Any:
    zero = np.zeros(len(values), np.int64)
    return coo_array((values, (zero, np.arange(len(values)))), shape=(1, total))


def _ties(at: int, start: int, K: int, total: int) -> Any:
    """sum_b y[a, b] - x[at, a] = 0 and sum_a y[a, b] - x[at + 1, b] = 0."""
    a, b = np.divmod(np.arange(K * K), K)
    columns = [start + np.arange(K * K)] * 2 + [at * K + np.arange(K), (at + 1) * K + np.arange(K)]
    rows = [a, K + b, np.arange(K), K + np.arange(K)]
    values = np.concatenate([np.ones(2 * K * K), -np.ones(2 * K)])
    return coo_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=(2 * K, total))


def budgets(problem: Problem, count: int) -> list[int]:
    """`count` sizes from the smallest file to that with every layer at the finest choice but float."""
    low, high = problem.size(_cheapest(problem)), problem.size(problem.uniform(problem.finest))
    return [int(size) for size in np.linspace(low, max(low, high), max(count, 1) + 1)[1:]]


def ilp_front(problem: Problem, count: int) -> Iterator[Assignment]:
    """Different assignments for `count` budgets, largest first."""
    seen: set[bytes] = set()
    for budget in reversed(budgets(problem, count)):
        found = ilp(problem, budget)
        if found.tobytes() not in seen:
            seen.add(found.tobytes())
            yield found
