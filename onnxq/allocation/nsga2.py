"""Strategy `nsga2`: pymoo's NSGA-II over assignments, on predicted bytes and measured logit MSE.

It starts from the fronts of the other strategies. Every generation is judged by the surrogate (the problem's
predicted damage) first; only the better half by non-dominated rank is measured. What is not measured enters
with its predicted damage times the median ratio of measured to predicted so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator as PymooEvaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PolynomialMutation
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem
from pymoo.termination import get_termination
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from onnxq.allocation.problem import Assignment, Problem

__all__ = ["Evolved", "evolve"]

# Both objectives of an assignment beyond the limits: more than any file has bytes.
_FORBIDDEN = 1e18


@dataclass(frozen=True)
class Evolved:
    """An assignment that was measured: its logit MSE, predicted bytes, and what it spends of `over`."""

    assignment: Assignment
    mse: float
    bytes: int
    spent: float


def evolve(
    problem: Problem,
    seeds: Sequence[Assignment],
    mse: Callable[[Assignment], float],
    *,
    population: int = 24,
    generations: int = 10,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    allowed: Callable[[Assignment], bool] = lambda _: True,
    over: str = "bytes",
) -> list[Evolved]:
    """The measured, non-dominated assignments, cheapest in the resource `over` first.

    mse: logit MSE of an assignment; asked once for each different one. allowed: whether an assignment keeps
    the limits; others are never measured and rank behind all that do. stop: asked before each generation.
    """
    top = len(problem.choices) - 1
    space = PymooProblem(n_var=problem.count, n_obj=2, xl=0, xu=max(top, 1), vtype=int)
    algorithm = NSGA2(
        pop_size=population,
        sampling=_sampling(problem, seeds, population, seed),
        crossover=UniformCrossover(prob=0.9, repair=RoundingRepair()),
        mutation=PolynomialMutation(prob=1.0, prob_var=2.0 / problem.count, eta=5, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(space, termination=get_termination("n_gen", generations + 1), seed=seed, verbose=False)
    measured: dict[bytes, Evolved] = {}
    while algorithm.has_next() and not stop():
        offspring = algorithm.ask()
        if offspring is None or len(offspring) == 0:
            break
        rows = [np.clip(np.rint(row), 0, top).astype(np.int64) for row in offspring.get("X")]
        values = _judge(problem, rows, mse, measured, allowed, over, first=algorithm.n_iter in (None, 1))
        PymooEvaluator().eval(StaticProblem(space, F=values), offspring)
        algorithm.tell(infills=offspring)
    return _front(list(measured.values()))


def _sampling(problem: Problem, seeds: Sequence[Assignment], population: int, seed: int) -> Any:
    if not seeds:
        return IntegerRandomSampling()
    rng = np.random.default_rng(seed)
    rows = [np.asarray(row) for row in seeds][:population]
    while len(rows) < population:
        row = rows[int(rng.integers(len(seeds[:population])))].copy()
        at = rng.integers(problem.count, size=max(problem.count // 10, 1))
        row[at] = rng.integers(len(problem.choices), size=len(at))
        rows.append(row)
    return Population.new("X", np.array(rows, np.float64))


def _judge(
    problem: Problem,
    rows: Sequence[Assignment],
    mse: Callable[[Assignment], float],
    measured: dict[bytes, Evolved],
    allowed: Callable[[Assignment], bool],
    over: str,
    first: bool,
) -> Any:
    """[n, 2]: the resource and ln MSE of every row, measured for those that the surrogate thinks well of."""
    kept = [index for index, row in enumerate(rows) if allowed(row)]
    values: Any = np.full((len(rows), 2), _FORBIDDEN)
    if kept:
        values[kept] = _estimates(problem, [rows[index] for index in kept], mse, measured, over, first)
    return values


def _estimates(
    problem: Problem,
    rows: Sequence[Assignment],
    mse: Callable[[Assignment], float],
    measured: dict[bytes, Evolved],
    over: str,
    first: bool,
) -> Any:
    resource = problem.resources[over]
    spent = np.array([resource.of(row) for row in rows], np.float64)
    predicted = np.log(np.maximum([problem.damage(row) for row in rows], 1e-30))
    order = np.argsort(
        NonDominatedSorting().do(np.column_stack([spent, predicted]), return_rank=True)[1], kind="stable"
    )
    for index in order[: len(rows) if first else (len(rows) + 1) // 2]:
        row = rows[int(index)]
        if row.tobytes() not in measured:
            measured[row.tobytes()] = Evolved(row, mse(row), problem.size(row), float(spent[index]))
    shift = float(
        np.median(
            [
                np.log(max(e.mse, 1e-30)) - np.log(max(problem.damage(e.assignment), 1e-30))
                for e in measured.values()
            ]
        )
    )
    real = [
        np.log(max(measured[row.tobytes()].mse, 1e-30)) if row.tobytes() in measured else guess + shift
        for row, guess in zip(rows, predicted, strict=True)
    ]
    return np.column_stack([spent, real])


def _front(measured: Sequence[Evolved]) -> list[Evolved]:
    if not measured:
        return []
    costs = np.array([[entry.spent, entry.mse] for entry in measured], np.float64)
    chosen = NonDominatedSorting().do(costs, only_non_dominated_front=True)
    return sorted((measured[int(index)] for index in chosen), key=lambda entry: (entry.spent, entry.mse))
