"""Strategy `ilp`: the assignment of least predicted damage under limits, by scipy's milp (HiGHS).

    minimise   sum_lk cost[l, k] x[l, k]  (+ sum_l sum_ab I[l, a, b] y[l, a, b])
    subject to sum_k x[l, k] = 1,   sum_lk r[l, k] x[l, k] + rest_r <= limit_r for every limited r,   x binary

r: bytes, bit operations, or a resource that a cost model brought (onnxq/allocation/resources.py).

I[l, a, b] = 2 rho_l sqrt(cost[l, a] cost[l + 1, b]) is what neighbours add or take away when both are
quantized: their errors e, e' at the logits give |e + e'|^2 = |e|^2 + |e'|^2 + 2 rho |e| |e'|. rho_l comes
from one measured pair. The products y = x x' are tied by sum_b y[l, a, b] = x[l, a] and sum_a y[l, a, b] =
x[l + 1, b], which for a chain is as tight as it gets.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, vstack

from onnxq.allocation.problem import Assignment, Problem
from passes.core.errors import UserError

__all__ = ["budgets", "ilp", "ilp_front"]

Vector = npt.NDArray[np.float64]
_GAP = 1e-4
_NODES = 5000


def ilp(
    problem: Problem, budget: float = math.inf, *, limits: Mapping[str, float] | None = None
) -> Assignment:
    """The best assignment whose file takes at most `budget` bytes, and that keeps `limits`.

    limits: name of a resource of the problem (`bops`, or what cost models brought) -> most of it.
    Raises UserError when none fits.
    """
    bounds = {**({"bytes": math.floor(budget)} if math.isfinite(budget) else {}), **(limits or {})}
    for name, most in bounds.items():
        _check(problem, name, most)
    L, K = problem.cost.shape
    pairs = [at for at in range(L - 1) if problem.correlation.size and problem.correlation[at] != 0]
    n = L * K
    total = n + len(pairs) * K * K
    objective = np.concatenate([problem.cost.ravel(), *(_interaction(problem, at).ravel() for at in pairs)])
    scale = max(float(np.abs(objective).max()), 1e-30)
    rows = [_one_each(L, K, total)]
    low, high = [np.ones(L)], [np.ones(L)]
    for name, most in bounds.items():
        resource = problem.resources[name]
        unit = float(resource.table.max()) or 1.0
        rows.append(_row(resource.table.ravel() / unit, total))
        low.append(np.array([-np.inf]))
        high.append(np.array([(most - resource.rest) / unit]))
    for position, at in enumerate(pairs):
        rows.append(_ties(at, n + position * K * K, K, total))
        low.append(np.zeros(2 * K))
        high.append(np.zeros(2 * K))
    integrality = np.concatenate([np.ones(n), np.zeros(total - n)])
    with warnings.catch_warnings(), quiet_stdout():
        # scipy warns for every option that it hands through to HiGHS.
        warnings.simplefilter("ignore")
        solved = milp(
            objective / scale,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(vstack(rows).tocsr(), np.concatenate(low), np.concatenate(high)),
            # Presolve gains nothing on these.
            options={"mip_rel_gap": _GAP, "node_limit": _NODES, "presolve": False},
        )
    if solved.x is None:
        wanted = " and ".join(f"{most:g} {name}" for name, most in bounds.items())
        raise UserError(f"no policy of this search space fits {wanted}")
    return np.asarray(solved.x[:n].reshape(L, K).argmax(axis=1), np.int64)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what C code prints: HiGHS leaves lines of its own on stdout, which may be somebody's JSON."""
    try:
        libc, kept = ctypes.CDLL(None), os.dup(1)
    except (OSError, TypeError):  # no such library (Windows), or stdout is closed
        yield
        return
    sys.stdout.flush()
    libc.fflush(None)
    try:
        with Path(os.devnull).open("wb") as sink:
            os.dup2(sink.fileno(), 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _check(problem: Problem, name: str, most: float) -> None:
    """Raises UserError where the least of one resource is more than what is asked for."""
    resources = problem.resources
    if name not in resources:
        raise UserError(f"there is no resource '{name}' to limit; there is {', '.join(resources)}")
    resource = resources[name]
    if resource.least <= most:
        return
    if name == "bytes":
        raise UserError(
            f"`budget` {most / 1e6:.3f}MB: the smallest file of this search space takes "
            f"{resource.least / 1e6:.3f} MB"
        )
    option = f"`bops_budget` {most:g}" if name == "bops" else f"`limits` {name}={most:g}"
    least = f"{resource.least:g} {resource.unit}".rstrip()
    raise UserError(f"{option}: the cheapest policy of this search space takes {least}")


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


def budgets(problem: Problem, count: int, over: str = "bytes") -> list[float]:
    """`count` amounts of a resource, from its least to that of every layer at its finest choice but float.

    For bytes whole numbers.
    """
    resource = problem.resources[over]
    low, high = resource.least, resource.of(problem.uniform(problem.finest))
    amounts = np.linspace(low, max(low, high), max(count, 1) + 1)[1:]
    return [float(int(amount)) if over == "bytes" else float(amount) for amount in amounts]


def ilp_front(
    problem: Problem, count: int, over: str = "bytes", limits: Mapping[str, float] | None = None
) -> Iterator[Assignment]:
    """Different assignments for `count` amounts of the resource `over`, largest first, all within `limits`.

    Raises UserError where the limits alone leave no assignment; amounts that leave none with them are passed
    over.
    """
    seen: set[bytes] = set()
    limits = limits or {}
    if limits:
        ilp(problem, limits=limits)
    for amount in reversed(budgets(problem, count, over)):
        bounds = {**limits, over: min(amount, limits.get(over, math.inf))}
        try:
            found = ilp(problem, limits=bounds)
        except UserError:
            if not limits:
                raise
            continue
        if found.tobytes() not in seen:
            seen.add(found.tobytes())
            yield found
