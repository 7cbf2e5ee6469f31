"""Biases corrected without data and with it, behind rounding to nearest: EfficientNet-Lite0.

    python benchmarks/bias_correction.py

From the float export through `simplify | fold_batchnorm | quantize{...}`, calibrated on 100 images, evaluated
on the other 400: nearest, analytic (from BatchNormalization alone), bias (from the calibration images).
"""

from __future__ import annotations

from typing import Any

import imagenet
import numpy as np
import numpy.typing as npt

import onnxq as oq

CASES = (
    ("int8:tensor", "float"),
    ("int8:tensor", "uint8"),
    ("int6:channel", "float"),
    ("uint4:channel", "float"),
    ("int4:channel", "float"),
)


def main() -> None:
    model, prepared = oq.load(imagenet.MODEL), imagenet.prepared()
    calibration, evaluation = imagenet.split(prepared, True)

    def logits(held: Any) -> npt.NDArray[Any]:
        session = oq.load_session(held, threads=1)
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: b.inputs[name]})[0] for b in evaluation.batches(10)])

    labels = np.concatenate([batch.labels for batch in evaluation.batches(10)])
    exact = logits(prepared)
    right = (exact.argmax(1) == labels).astype(float)
    print("| weights, activations | rounding | top-1 | points vs float | logit MSE | SQNR dB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for weights, activations in CASES:
        for rounding in ("nearest", "analytic", "bias"):
            options = f"weights={weights} activations={activations} rounding={rounding}"
            recipe = oq.parse_recipe(f"simplify | fold_batchnorm | quantize{{{options}}}")
            found = logits(recipe(model, oq.calibrate(calibration)).model)
            gap = (found.argmax(1) == labels) - right
            error = np.mean(np.square(found - exact))
            sqnr = 10 * np.log10(np.mean(np.square(exact)) / error)
            spread = 100 * gap.std() / np.sqrt(len(gap))
            top1 = np.mean(found.argmax(1) == labels)
            points = f"{100 * gap.mean():+.2f} +- {spread:.2f}"
            case = f"{weights}, {activations} | {rounding}"
            print(f"| {case} | {top1:.4f} | {points} | {error:.4f} | {sqnr:.1f} |", flush=True)


if __name__ == "__main__":
    main()
