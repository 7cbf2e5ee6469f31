"""GSE-MIX's memory: tau-allocations of real weights, the policy's prediction beside the saved file.

    python benchmarks/gse_mix.py [-o FOLDER]

The shipped MobileNetV4 and EfficientNet-Lite0 (needs ../shared), candidates 4, 6 and 8 bits at G = 32,
sensitivities on 100 calibration images. Besides the paper's formula for the weights, N (b + 5 / G) / 8 with b
the mean of the bits over all N weights. Exit code 1 where a file is off by more than 3 % + 200 KB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import imagenet

import onnxq as oq
from onnxq.allocation import Problem, threshold
from onnxq.data import Dataset
from passes.opset import upgrade
from passes.quantize import required_policy_opset

ROOT = Path(__file__).resolve().parents[1] / "models"
BITS, GROUP, TAUS = (4, 6, 8), 32, (0.001, 0.01, 0.03, 0.1, 0.5)


def mobilenet() -> tuple[oq.Model, Dataset]:
    model = (oq.Simplify() | oq.FoldBatchNorm())(oq.load(ROOT / "mobilenetv4_small.onnx")).model
    folder = str(ROOT / "cifar10/calibration")
    return model, oq.open_dataset(folder, model, preprocess="cifar", limit=100)


def lite0() -> tuple[oq.Model, Dataset]:
    model = imagenet.prepared()
    return model, imagenet.split(model)[0]


def saved(model: oq.Model, policy: oq.Policy, path: Path) -> int:
    lifted = upgrade(model, required_policy_opset(policy), "the policy", oq.Context())
    oq.save(oq.Quantize.of(policy)(lifted, oq.Context(check=False)).model, path)
    return path.stat().st_size


def row(name: str, model: oq.Model, problem: Problem, tau: float, folder: Path) -> bool:
    assignment = threshold(problem, tau)
    predicted, real = problem.size(assignment), saved(model, problem.policy(assignment), folder / "mix.onnx")
    counts = [layer.weights for layer in oq.find_layers(model)]
    total = sum(counts)
    bits = sum(count * BITS[int(k)] for count, k in zip(counts, assignment, strict=True)) / total
    formula = total * (bits + 5 / GROUP) / 8
    weights = predicted - problem.rest
    good = abs(real - predicted) <= 0.03 * predicted + 200_000
    layers = "/".join(str(int((assignment == k).sum())) for k in range(len(BITS)))
    print(
        f"| {name} | {tau:g} | {layers} | {bits:.2f} | {formula / 2**20:.3f} | {weights / 2**20:.3f} | "
        f"{predicted} | {real} | {100 * (real / predicted - 1):+.2f} % | {'yes' if good else 'NO'} |",
        flush=True,
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gse_mix"))
    args = parser.parse_args()
    print("| network | tau | layers with 4/6/8 bits | mean bits | formula MiB | weights MiB | ", end="")
    print("predicted bytes | saved bytes | difference | within 3 % + 200 KB |")
    good = True
    for name, make in (("MobileNetV4 (CIFAR-10)", mobilenet), ("EfficientNet-Lite0", lite0)):
        model, data = make()
        folder = args.output / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        problem = oq.sensitivities(model, data, [f"gse{b}" for b in BITS], folder).problem
        for tau in TAUS:
            good = row(name, model, problem, tau, folder) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
