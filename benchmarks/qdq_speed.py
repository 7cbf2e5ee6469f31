"""Speed of our W8A8 file against onnxruntime.quantization's of the same granularity, interleaved.

    python benchmarks/qdq_speed.py [--runs 60] [--threads 1] [--rounding nearest|gptq]

Prints the ratio of medians (ours / theirs) for batch 1 and what Q/DQ ONNX Runtime leaves in each.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
from imagenet import prepared, quantize_with_onnxruntime, split

from onnxq.calibration import CalibratedRanges
from onnxq.evaluation import interleaved, load_session, surviving_qdq
from onnxq.rounding import DataRounder
from passes import Context, Quantize, load, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounding", choices=["nearest", "gptq"], default="nearest", help="of our weights")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = prepared()
    calibration, _ = split(model)
    ranges = CalibratedRanges(calibration, "percentile:99.99", threads=args.threads)
    folder = Path(tempfile.mkdtemp())
    rounder = DataRounder(calibration) if args.rounding != "nearest" else None
    context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors), rounder=rounder)
    feed = next(calibration.batches(1)).inputs
    print(
        "| weights | ours / onnxruntime.quantization | ours / float | Q, DQ left: ours | Q, DQ left: theirs |"
    )
    print("| --- | --- | --- | --- | --- |")
    for granularity in ("tensor", "channel"):
        quantize = Quantize(weights=f"int8:{granularity}", rounding=args.rounding)
        save(quantize(model, context).model, folder / "ours.onnx")
        theirs_path = folder / "theirs.onnx"
        quantize_with_onnxruntime(
            model, theirs_path, calibration.subset(range(10)), per_channel=granularity == "channel"
        )
        models = [load(folder / "ours.onnx"), load(theirs_path), model]
        sessions = [load_session(item, threads=args.threads) for item in models]
        ours, theirs, plain = interleaved(sessions, feed, runs=args.runs, warmup=5)
        left = [surviving_qdq(item, folder) for item in models[:2]]
        spread = np.subtract(*ours.quartiles[::-1]) / ours.median
        shown = [f"{count['QuantizeLinear']}, {count['DequantizeLinear']}" for count in left]
        print(
            f"| per {granularity} | {ours.median / theirs.median:.3f} (IQR {100 * spread:.0f} %) | "
            f"{ours.median / plain.median:.3f} | {shown[0]} | {shown[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
