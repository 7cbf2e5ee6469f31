"""Kendall's tau between what each strategy predicts and what is measured: 30 random policies of equal size.

    python benchmarks/kendall.py --folder F [--images 200]      # F: the folder of mixed_front.py

EfficientNet-Lite0, weights only, GSE G = 32, b in {4, 6, 8} (with 2 and 3 bits, random policies of this
network all end at zero), weights of 0.67x of GSE-8 within 1 %. Measured on the first images of the evaluation
split: top-1 and logit MSE. Predictions come from calibration images alone. As in SMPQ's Fig. 5.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
from imagenet import prepared
from mixed_front import Bench
from scipy.stats import kendalltau

from onnxq.allocation.problem import Assignment, Problem
from onnxq.allocation.shapley import value_problem
from onnxq.evaluation import Evaluator
from onnxq.tuning.file_size import file_bytes
from onnxq.tuning.strategies.ilp import paired as with_neighbours
from passes import Context, Quantize
from passes.opset import upgrade
from passes.quantize import required_policy_opset

POLICIES, SHARE, KEPT = 30, 0.67, (4, 6, 8)


def random_policies(problem: Problem, budget: float, seed: int = 0) -> list[Assignment]:
    """Uniform choices, then random layers moved up or down until the size is within 1 %."""
    rng = np.random.default_rng(seed)
    allowed = [i for i, c in enumerate(problem.choices) if c.weights.bits in KEPT]
    found = []
    while len(found) < POLICIES:
        level = rng.integers(len(allowed), size=problem.count)
        for _ in range(1000):
            assignment = np.array(allowed, np.int64)[level]
            gap = problem.size(assignment) / budget - 1
            if abs(gap) < 0.01:
                found.append(assignment)
                break
            at = rng.integers(problem.count)
            level[at] = np.clip(level[at] - int(np.sign(gap)), 0, len(allowed) - 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=10)
    args = parser.parse_args()
    bench = Bench(args.folder, args.permutations, 10)
    problem, model = bench.problem, prepared()
    weigh = functools.partial(file_bytes, model)
    paired, values = with_neighbours(bench.search(weigh)), value_problem(problem, bench.shapley()[2])
    policies = random_policies(problem, bench.budget(SHARE))
    rows = np.arange(problem.count)
    predictions: dict[str, list[float]] = {
        "ilp: sum of S": [problem.damage(a) for a in policies],
        "ilp-pairs: with neighbours": [paired.damage(a) for a in policies],
        "threshold: largest S": [float(problem.cost[rows, a].max()) for a in policies],
        "shapley: sum of psi": [values.damage(a) for a in policies],
        "nsga2: MSE on 32 calibration images": [bench.mse(a) for a in policies],
    }
    evaluator = Evaluator(model, bench.evaluation.subset(range(args.images)), budget=0)
    measured = [scores(bench, evaluator, a) for a in policies]
    top1, mse = (np.array([entry[name] for entry in measured]) for name in ("top1", "mse"))
    print(f"{POLICIES} policies: top-1 {top1.min():.3f} to {top1.max():.3f}, ", end="")
    print(f"logit MSE {mse.min():.3g} to {mse.max():.3g}")
    print("| prediction | tau with top-1 | p | tau with logit MSE | p |")
    for name, predicted in predictions.items():
        one, other = kendalltau(-np.array(predicted), top1), kendalltau(predicted, mse)
        cells = (f"{found.statistic:.2f} | {found.pvalue:.1g}" for found in (one, other))
        print(f"| {name} | {' | '.join(cells)} |")


def scores(bench: Bench, evaluator: Evaluator, assignment: Assignment) -> dict[str, Any]:
    key = "".join(map(str, assignment.tolist())) + f"|{len(evaluator.dataset)}"
    held = bench.journal.get("score", key)
    if held is None:
        policy = bench.problem.policy(assignment)
        lifted = upgrade(evaluator.model, required_policy_opset(policy), "the policy", Context())
        held = evaluator.evaluate(Quantize.of(policy)(lifted, Context(check=False)).model).values
        held = {name: held[name] for name in ("top1", "mse")}
        bench.journal.append("score", key, held)
    return dict(held)


if __name__ == "__main__":
    main()
