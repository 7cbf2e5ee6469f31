"""Rounding that looks at the data beside rounding to nearest, on EfficientNet-Lite0 and the shipped networks.

    python benchmarks/rounding.py [--network lite0|resnet20|mobilenetv4_small] [--weights gse4:block32,...]
        [--rounding nearest,gptq,adaround,brecq] [--activations float] [--damping 1.0|auto] [--held-out]

Each model is quantized in a process of its own, which says what it cost, and saved. Every accuracy is
measured from the saved file in stock ONNX Runtime (with session.disable_quant_qdq where only weights are
quantized).
--held-out measures on the last fifth of the calibration images instead of on the evaluation images, and
calibrates on the others: for choosing constants.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imagenet
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset, input_specs, materialise, open_dataset
from onnxq.evaluation import Score, Scorer
from onnxq.metrics import default_metric, metrics_beside
from onnxq.rounding.rounder import DAMPING, DataRounder
from onnxq.training import BlockRounder
from passes import Context, FoldBatchNorm, Model, Quantize, Simplify, load, save

MODELS = Path(__file__).resolve().parents[1] / "models"
CIFAR = {"resnet20": 100, "mobilenetv4_small": 100}
SCHEMES = "gse6:block32,gse4:block32,gse3:block32,int4:channel,int3:channel,int8:tensor"


def network(name: str, held: bool) -> tuple[Model, Dataset, Dataset]:
    """(prepared model, calibration, evaluation), the images held in memory or not."""
    if name == "lite0":
        model = imagenet.prepared()
        return model, *imagenet.split(model, held)
    model = (Simplify() | FoldBatchNorm())(load(MODELS / f"{name}.onnx")).model

    def images(source: Path, limit: int | None) -> Dataset:
        data = open_dataset(source, input_specs(model.proto), preprocess="cifar", limit=limit)
        return materialise(data, 2**31) if held else data

    test = imagenet.SHARED / "data" / "cifar10-test.zip"
    return model, images(MODELS / "cifar10" / "calibration", CIFAR[name]), images(test, 4000)


def parts(args: argparse.Namespace) -> tuple[Model, Dataset, Dataset]:
    model, calibration, evaluation = network(args.network, held=args.child is None)
    if args.held_out:
        keep = len(calibration) * 4 // 5
        evaluation = calibration.subset(range(keep, len(calibration)))
        calibration = calibration.subset(range(keep))
    return model, calibration, evaluation


def child(args: argparse.Namespace) -> None:
    """Quantize one model and print what it cost."""
    model, calibration, _ = parts(args)
    ranges = CalibratedRanges(calibration, "percentile:99.99", threads=args.threads)
    damping = None if args.damping == "auto" else float(args.damping)
    context = Context(
        ranges=lambda at, tensors: ranges(at.proto, tensors),
        rounder=BlockRounder(DataRounder(calibration, damping=damping, threads=args.threads), args.steps),
    )
    started, wall = time.process_time(), time.perf_counter()
    step = Quantize(weights=args.weights, activations=args.activations, rounding=args.rounding)
    result = step(model, context)
    save(result.model, args.child)
    for note in result.notes if args.rounding == "brecq" else ():
        print(note, file=sys.stderr)
    cost = {
        "cpu": time.process_time() - started,
        "wall": time.perf_counter() - wall,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(cost))


def logits(path: Path, data: Dataset, threads: int, fold: bool) -> npt.NDArray[np.float32]:
    """Of a file in plain ONNX Runtime, without anything of ours."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if fold:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batches = data.batches(10)
    return np.concatenate([np.asarray(session.run(None, batch.inputs)[0]) for batch in batches])


def score(found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], data: Dataset) -> Score:
    labels = np.concatenate([batch.labels for batch in data.batches(10) if batch.labels is not None])
    scorer = Scorer(metrics_beside(default_metric(labelled=True), labelled=True, reference=True))
    scorer.update({"logits": found}, labels, {"logits": reference})
    return scorer.score()


def row(name: str, rounding: str, held: Score, reference: Score, size: int, cost: dict[str, Any]) -> str:
    difference = held.hits.astype(float) - reference.hits
    paired = 100 * difference.std() / np.sqrt(len(difference))
    top1 = f"{held.values['top1']:.4f} +- {held.stderr['top1']:.4f}"
    return (
        f"| {name} | {rounding} | {top1} | {100 * difference.mean():+.2f} +- {paired:.2f} | "
        f"{held.values['agreement']:.3f} | {held.values['mse']:.4f} | {held.values['sqnr']:.1f} | "
        f"{size / 1e6:.2f} | {cost.get('cpu', 0):.0f} | {cost.get('rss', 0):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", default="lite0", choices=["lite0", *CIFAR])
    parser.add_argument("--weights", default=SCHEMES)
    parser.add_argument("--rounding", default="nearest,gptq")
    parser.add_argument("--activations", default="float")
    parser.add_argument("--damping", default=str(DAMPING))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000, help="of brecq, for each block")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    model, _, evaluation = parts(args)
    folder = Path(tempfile.mkdtemp(prefix="onnxq-rounding-"))
    source = folder / "float.onnx"
    save(model, source)
    wanted = logits(source, evaluation, args.threads, fold=False)
    reference = score(wanted, wanted, evaluation)
    print(f"{args.network}, {len(evaluation)} images, float top-1 {reference.values['top1']:.4f}")
    print("| weights | rounding | top-1 | points vs float | agree | logit MSE | SQNR dB | MB | CPU s | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    options = [
        f"--{key}={getattr(args, key)}" for key in ("network", "activations", "damping", "threads", "steps")
    ]
    options += ["--held-out"] if args.held_out else []
    # BLAS threads that wait for a busy core count as CPU time.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(args.threads)}
    for weights in args.weights.split(","):
        for rounding in args.rounding.split(","):
            path = folder / "quantized.onnx"
            own = [f"--weights={weights}", f"--rounding={rounding}", f"--child={path}"]
            done = subprocess.run(
                [sys.executable, __file__, *options, *own],
                check=True,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            cost = json.loads(done.stdout.splitlines()[-1])
            found = logits(path, evaluation, args.threads, fold=args.activations == "float")
            held = score(found, wanted, evaluation)
            print(row(weights, rounding, held, reference, path.stat().st_size, cost), flush=True)


if __name__ == "__main__":
    main()
