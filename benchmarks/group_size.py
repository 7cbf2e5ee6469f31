"""GSE-MN4's pictures and its sizes, on the shipped MobileNetV4: sensitivity, allocation by tau, group size.

    python benchmarks/group_size.py [-o FOLDER] [--limit 500]

Writes sensitivity.png, allocation.png and group_size.png, and prints for tau-allocations (candidates 4, 6, 8
bits, G = 32) the predicted and the real size of the saved file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxq as oq
from onnxq.allocation import threshold
from onnxq.report.drawing import png
from onnxq.report.pictures import allocation_figure, group_size_figure, sensitivity_figure
from passes.opset import upgrade
from passes.quantize import required_policy_opset

ROOT = Path(__file__).resolve().parents[1] / "models"
BITS, GROUPS, TAUS = (2, 3, 4, 6, 8), (8, 16, 32, 64), (0.01, 0.1, 0.5)


def saved(model: oq.Model, policy: oq.Policy, path: Path) -> tuple[oq.Model, int]:
    lifted = upgrade(model, required_policy_opset(policy), "the policy", oq.Context())
    oq.save(oq.Quantize.of(policy)(lifted, oq.Context(check=False)).model, path)
    return oq.load(path), path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/group_size"))
    parser.add_argument("--limit", type=int, default=500)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    source = oq.load(ROOT / "mobilenetv4_small.onnx")
    model = (oq.Simplify() | oq.FoldBatchNorm())(source).model
    calibration = oq.open_dataset(str(ROOT / "cifar10/calibration"), model, preprocess="cifar", limit=100)
    data = oq.open_dataset(str(ROOT / "cifar10/test"), model, preprocess="cifar", limit=args.limit)
    table = oq.sensitivities(source, calibration, [f"gse{b}" for b in BITS], args.output / "table")
    problem = table.problem
    costs = {f"{b} bits": problem.cost[:, i].tolist() for i, b in enumerate(BITS)}
    figure = sensitivity_figure("mobilenetv4_small", problem.layers, costs)
    (args.output / "sensitivity.png").write_bytes(png(figure))
    rows, sizes = {}, {}
    print("| tau | predicted bytes | saved bytes | difference | top-1 |")
    for tau in TAUS:
        assignment = threshold(problem, tau, (4, 6, 8))
        built, size = saved(model, problem.policy(assignment), args.output / "tau.onnx")
        predicted, title = problem.size(assignment), f"tau = {tau:g}"
        rows[title], sizes[title] = [BITS[int(k)] for k in assignment], size / 1e6
        top1 = oq.evaluate(built, data).values["top1"]
        print(f"| {tau:g} | {predicted} | {size} | {100 * (size / predicted - 1):+.2f} % | {top1:.3f} |")
    figure = allocation_figure("mobilenetv4_small", problem.layers, rows, sizes)
    (args.output / "allocation.png").write_bytes(png(figure))
    points: dict[str, list[tuple[int, float, float]]] = {}
    for bits in (4, 6, 8):
        for group in GROUPS:
            policy = oq.Policy.uniform(problem.layers, oq.Scheme.parse(f"gse{bits}:block{group}"))
            built, size = saved(model, policy, args.output / "group.onnx")
            top1 = oq.evaluate(built, data).values["top1"]
            points.setdefault(f"GSE-{bits}", []).append((group, 100 * top1, size / 1e6))
            print(f"GSE-{bits} G = {group}: top-1 {top1:.3f}, {size} bytes")
    floor = 100 * oq.evaluate(model, data).values["top1"]
    figure = group_size_figure("mobilenetv4_small", points, "top-1 accuracy (%)", floor)
    (args.output / "group_size.png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
