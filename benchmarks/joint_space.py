"""Weights and activations together: SMPQ's spaces [2,8]/[8], [2,8]/[4] and [2,8]/[2,8], by bit operations.

    python benchmarks/joint_space.py --folder F [--limit 500]

The shipped MobileNetV4 on CIFAR-10, integer weights per channel, activations per tensor (simulated below 8
bits). Sensitivities of weights and activations, each alone, on 100 calibration images to precision 0.2; the
integer program under bit operations of a share of 8/8; top-1 of what it chooses on the first test images.
Then the rank correlation of the predicted damage (the sum) with the measured logit MSE of 24 random policies
of one size. Started again on the same folder it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

import onnxq as oq
from onnxq.allocation import Problem, ilp
from onnxq.allocation.problem import Assignment
from onnxq.calibration import CalibratedRanges
from onnxq.evaluation import Evaluator
from onnxq.search import Journal
from onnxq.sensitivity import Settings
from onnxq.tuning.models import saved_bytes
from onnxq.tuning.prepare import RecordedRanges, calibrate_once
from onnxq.tuning.space import Space
from passes import Context, LayerPolicy, Quantize
from passes.graph.layers import macs
from passes.opset import upgrade
from passes.policy import Policy
from passes.quantize import activation_scheme, required_policy_opset, weight_scheme

ROOT = Path(__file__).resolve().parents[1] / "models"
BITS = tuple(range(2, 9))
SPACES = {"[2,8]/[8]": (8,), "[2,8]/[4]": (4,), "[2,8]/[2,8]": BITS}
SHARES, POLICIES = (0.5, 0.375, 0.25, 0.1875), 24


def choice(weights: int, activations: int) -> LayerPolicy:
    return LayerPolicy(weight_scheme(f"int{weights}:channel"), activation_scheme(f"uint{activations}"))


class Bench:
    def __init__(self, folder: Path, limit: int) -> None:
        choices = [choice(w, a) for w in BITS for a in BITS]
        model = (oq.Simplify() | oq.FoldBatchNorm())(oq.load(ROOT / "mobilenetv4_small.onnx")).model
        opset = max(required_policy_opset(Policy({"": c})) for c in choices)
        self.model = upgrade(model, opset, "the space", Context())
        self.layers = oq.find_layers(self.model)
        data = oq.open_dataset(str(ROOT / "cifar10/calibration"), model, preprocess="cifar", limit=100)
        test = oq.open_dataset(str(ROOT / "cifar10/test"), model, preprocess="cifar", limit=limit)
        journal = Journal(folder, {"bench": "joint_space"})
        ranges = RecordedRanges.of(journal, CalibratedRanges(data, "percentile:99.99", threads=1))
        for bits in BITS:
            calibrate_once(self.model, ranges, Policy({x.name: choice(8, bits) for x in self.layers}))
        self.ranges = ranges
        self.space = Space(self.model, self.layers, data, journal, Settings(0.2, 1), ranges=ranges)
        self.evaluator = Evaluator(self.model, test, budget=2**28)
        self.whole = self.problem(BITS)
        self.most = self.whole.operations(self.whole.uniform(self.whole.choices.index(choice(8, 8))))

    def problem(self, activations: tuple[int, ...]) -> Problem:
        """The space with these activations; all of them are priced by the same sums."""
        from onnxq.tuning.space import separately

        choices = [choice(w, a) for w in BITS for a in activations]
        size, counts = saved_bytes(self.model), macs(self.model)
        return self.space.problem(choices, file_bytes=size, macs=counts, terms=separately)

    def top1(self, policy: Policy) -> float:
        quantized = Quantize.of(policy)(self.model, Context(check=False, ranges=self.ranges)).model
        return float(self.evaluator.evaluate(quantized).values["top1"])

    def random(self, share: float) -> list[Assignment]:
        """Random pairs of 3 bits or more, moved until the bit operations are within 2 % of a share of 8/8."""
        rng, found = np.random.default_rng(0), list[Assignment]()
        index = {(c.weights.bits, c.activations.bits): k for k, c in enumerate(self.whole.choices)}
        while len(found) < POLICIES:
            bits = rng.integers(3, 9, (self.whole.count, 2))
            for _ in range(2000):
                row = np.array([index[int(w), int(a)] for w, a in bits], np.int64)
                gap = self.whole.operations(row) / (share * self.most) - 1
                if abs(gap) < 0.02:
                    found.append(row)
                    break
                at = rng.integers(self.whole.count), rng.integers(2)
                bits[at] = np.clip(bits[at] - int(np.sign(gap)), 3, 8)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=500)
    args = parser.parse_args()
    bench = Bench(args.folder, args.limit)
    print(f"float {bench.evaluator.reference().values['top1']:.3f}")
    print("| weights/activations | " + " | ".join(f"{share:g} of 8/8" for share in SHARES) + " |", flush=True)
    for name, activations in SPACES.items():
        problem, cells = bench.problem(activations), []
        for share in SHARES:
            limit = share * bench.most
            if problem.resources["bops"].least > limit:
                cells.append("none")
                continue
            found = ilp(problem, limits={"bops": limit})
            policy = problem.policy(found)
            bits = [(c.weights.bits, c.activations.bits) for c in policy.layers.values()]
            mean = np.mean(bits, axis=0)
            top1 = bench.top1(policy)
            cells.append(f"{top1:.3f}, {mean[0]:.1f}/{mean[1]:.1f} bits, {problem.size(found) / 1e6:.2f} MB")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    policies = bench.random(0.5)
    measured = [bench.space.mse(bench.whole, a) for a in policies]
    found = kendalltau([bench.whole.damage(a) for a in policies], measured)
    print(
        f"{POLICIES} random policies at 0.5 of 8/8: logit MSE {min(measured):.3g} to {max(measured):.3g}; ",
        end="",
    )
    print(f"Kendall's tau of the sum of S with it {found.statistic:.2f} (p = {found.pvalue:.1g})")


if __name__ == "__main__":
    main()
