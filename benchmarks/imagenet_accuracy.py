"""Accuracy of 8-bit EfficientNet-Lite0: ours beside onnxruntime.quantization, weights alone and W8A8.

    python benchmarks/imagenet_accuracy.py [--method percentile:99.99] [--threads 2]

Every number is measured from the saved file in stock ONNX Runtime on the 400 evaluation images.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from imagenet import prepared, quantize_with_onnxruntime, split

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset
from onnxq.evaluation import Score, evaluate_file, surviving_qdq
from passes import Context, Model, Quantize, Smooth, load, save


def ours(model: Model, recipe: object, ranges: CalibratedRanges, path: Path) -> Model:
    """Apply a pass or pipeline with calibrated ranges and read the saved file back."""
    context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors))
    save(recipe(model, context).model, path)  # type: ignore[operator]
    return load(path)


def row(name: str, score: Score, reference: Score, left: dict[str, int] | None) -> str:
    gap = 100 * (score.values["top1"] - reference.values["top1"])
    kept = "" if left is None else f"{left['QuantizeLinear']} / {left['DequantizeLinear']}"
    return (
        f"| {name} | {score.values['top1']:.4f} +- {score.stderr['top1']:.4f} | {gap:+.2f} | "
        f"{score.values.get('agreement', 1):.4f} | {score.values.get('sqnr', 0):.1f} | {kept} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="percentile:99.99")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = prepared()
    calibration, evaluation = split(model)
    ranges = CalibratedRanges(calibration, args.method, threads=args.threads)
    folder = Path(tempfile.mkdtemp())

    def measure(candidate: Model, data: Dataset = evaluation) -> Score:
        return evaluate_file(candidate, data, model, threads=args.threads)

    reference = measure(model)
    print("| model | top-1 (400) | points vs float | agreement | SQNR dB | Q / DQ left by ORT |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(row("float", reference, reference, None), flush=True)
    pipelines = {
        "per tensor": ("int8:tensor", None),
        "per tensor + smooth output depthwise": ("int8:tensor", Smooth(site="output")),
        "per tensor + smooth output all": ("int8:tensor", Smooth(site="output", layers=("op:Conv",))),
        "per tensor + smooth input depthwise": ("int8:tensor", Smooth(site="input")),
        "per channel": ("int8:channel", None),
    }
    for activations, label in (("float", "weights only"), ("uint8", "W8A8")):
        for name, (weights, smooth) in pipelines.items():
            quantize = Quantize(weights=weights, activations=activations)
            recipe = quantize if smooth is None else smooth | quantize
            made = ours(model, recipe, ranges, folder / "ours.onnx")
            print(
                row(f"ours, {label}, {name}", measure(made), reference, surviving_qdq(made, folder)),
                flush=True,
            )
        for per_channel in (False, True):
            path = folder / "theirs.onnx"
            quantize_with_onnxruntime(
                model, path, calibration, per_channel=per_channel, weights_only=activations == "float"
            )
            made = load(path)
            name = f"onnxruntime.quantization MinMax, {label}, per {'channel' if per_channel else 'tensor'}"
            print(row(name, measure(made), reference, surviving_qdq(made, folder)), flush=True)


if __name__ == "__main__":
    main()
