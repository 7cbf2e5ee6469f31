"""W4A8, W6A8 and W8A8 of EfficientNet-Lite0 by several roads, on one split (needs ../shared).

    python benchmarks/low_bits.py [--rows TEXT] [--method percentile:99.99] [--threads 1]
    python benchmarks/low_bits.py --export FOLDER      # model.onnx and calibration.npy, for other tools
    python benchmarks/low_bits.py --files FOLDER       # measure what they made of them

Activations uint8 per tensor in all of them. Ours: weights int4 and int6 per channel, rounded to nearest
and on the calibration images (gptq); int8 per tensor with and without `equalize`; int8 per channel by
several ways to find the ranges of activations. onnxruntime.quantization: INT4 weights in its QDQ form,
MinMax; it has no 6 bits. --rows: only rows whose name holds the text. Every figure is measured from the
saved file in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from imagenet import prepared, quantize_with_onnxruntime, split
from imagenet_accuracy import row

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset
from onnxq.evaluation import Score
from onnxq.public import evaluate
from onnxq.rounding import DataRounder
from passes import Context, Model, Quantize, load, save
from passes.core.base import Pass
from passes.equalize import Equalize
from passes.opset import upgrade


class Roads:
    def __init__(self, method: str, threads: int) -> None:
        self.model, self.threads, self.method = prepared(), threads, method
        self.calibration, self.evaluation = split(self.model)
        self.path = Path(tempfile.mkdtemp()) / "made.onnx"

    def ours(self, weights: str, rounding: str, before: Pass | None = None, method: str = "") -> Model:
        ranges = CalibratedRanges(self.calibration, method or self.method, threads=self.threads)
        context = Context(
            ranges=lambda at, tensors: ranges(at.proto, tensors),
            rounder=DataRounder(self.calibration, threads=self.threads),
        )
        quantize = Quantize(weights=weights, activations="uint8", rounding=rounding)  # type: ignore[arg-type]
        recipe: Pass = quantize if before is None else before | quantize
        save(recipe(self.model, context).model, self.path)
        return load(self.path)

    def theirs(self, per_channel: bool) -> Model:
        lifted = upgrade(self.model, 21, "INT4", Context())
        quantize_with_onnxruntime(lifted, self.path, self.calibration, per_channel=per_channel, weight_bits=4)
        return load(self.path)

    def export(self, folder: Path) -> None:
        """The network and its calibration images, for tools in other environments."""
        folder.mkdir(parents=True, exist_ok=True)
        save(self.model, folder / "model.onnx")
        images = [next(iter(batch.inputs.values())) for batch in self.calibration.batches(10)]
        np.save(folder / "calibration.npy", np.concatenate(images))

    def rows(self) -> dict[str, Callable[[], Model]]:
        return {
            "W4A8 ours, per channel, nearest": lambda: self.ours("int4:channel", "nearest"),
            "W4A8 ours, per channel, gptq": lambda: self.ours("int4:channel", "gptq"),
            "W4A8 ours, GSE-4, gptq": lambda: self.ours("gse4:block32", "gptq"),
            "W4A8 onnxruntime, per tensor": lambda: self.theirs(False),
            "W4A8 onnxruntime, per channel": lambda: self.theirs(True),
            "W6A8 ours, per channel, nearest": lambda: self.ours("int6:channel", "nearest"),
            "W6A8 ours, per channel, gptq": lambda: self.ours("int6:channel", "gptq"),
            "W8A8 ours, per tensor, nearest": lambda: self.ours("int8:tensor", "nearest"),
            "W8A8 ours, per tensor, equalize": lambda: self.ours("int8:tensor", "nearest", Equalize()),
            "W8A8 ours, per tensor, equalize, bias": lambda: self.ours("int8:tensor", "bias", Equalize()),
            "W8A8 ours, per channel, nearest": lambda: self.ours("int8:channel", "nearest"),
            "W8A8 ours, per channel, ranges by output": lambda: self.ours(
                "int8:channel", "nearest", method="output"
            ),
            "W8A8 ours, per channel, ranges by mse": lambda: self.ours(
                "int8:channel", "nearest", method="mse"
            ),
            "W8A8 ours, per channel, ranges by entropy": lambda: self.ours(
                "int8:channel", "nearest", method="entropy"
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", default="")
    parser.add_argument("--method", default="percentile:99.99")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--files", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    roads = Roads(args.method, args.threads)
    if args.export:
        roads.export(args.export)
        return
    makers = roads.rows()
    if args.files:
        found = sorted(path for path in args.files.glob("*.onnx") if path.name != "model.onnx")
        makers = {path.stem: functools.partial(load, path) for path in found}

    def measure(candidate: Model, data: Dataset = roads.evaluation) -> Score:
        return evaluate(candidate, data, roads.model, threads=args.threads)

    reference = measure(roads.model)
    print("| model | top-1 (400) | points vs float | agreement | SQNR dB | |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(row("float", reference, reference, None), flush=True)
    for name, make in makers.items():
        if args.rows not in name:
            continue
        start = time.process_time()
        try:
            made = make()
        except (ValueError, RuntimeError, TypeError, KeyError, NotImplementedError) as error:
            print(f"| {name} | fails: {str(error).splitlines()[0][:120]} |", flush=True)
            continue
        seconds = time.process_time() - start
        print(row(name, measure(made), reference, None) + f" {seconds:.0f} CPU s |", flush=True)


if __name__ == "__main__":
    main()
