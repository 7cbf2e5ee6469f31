"""CPU time of all sensitivities of EfficientNet-Lite0: the plain way against the engine.

    python benchmarks/sensitivity_cost.py [--images 125] [--precision 0.1] [--plain-every 1]
    python benchmarks/sensitivity_cost.py --model resnet50.onnx --schemes gse4 --images 32 --plain-every 6

50 layers x GSE b in {2, 3, 4, 6, 8} (G = 32, weights only), the first images of the evaluation split (beyond
400 of the calibration split too), one thread. Plain, per variant: the quantize pass, the file written, loaded
into a new session, run over all images in batches of 4 (its fastest), logit MSE. Engine:
`measure_sensitivities`, once with precision 0 (every image) and once with --precision; a value that stopped
early is compared with the plain way's on the same images. --model: another network for 224 x 224 images, by
`imagenet` preprocessing (benchmarks/resnet50.py makes one). --exact-every N: the engine's run over every
image takes every N-th variant.
--plain-every N takes every N-th variant of the plain way. Every way in a process of its own; peak memory is
that process's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from imagenet import CALIBRATION, DATA, prepared

from onnxq.data import Dataset, input_specs, materialise, open_dataset
from onnxq.evaluation import load_session
from onnxq.sensitivity import Sensitivity, Settings, Variant, measure_sensitivities
from passes import (
    Context,
    FoldBatchNorm,
    LayerPolicy,
    Model,
    Policy,
    Quantize,
    Scheme,
    Simplify,
    find_layers,
    load,
    save,
)

SCHEMES = "gse2,gse3,gse4,gse6,gse8"
SEED = 0


def network(path: str) -> Model:
    return (Simplify() | FoldBatchNorm())(load(path)).model if path else prepared()


def images(count: int, path: str = "") -> Dataset:
    """Only what is used is held in memory."""
    model = network(path)
    preprocess = "imagenet" if path else "efficientnet-lite"
    data = open_dataset(DATA, input_specs(model.proto), preprocess=preprocess)
    order = np.random.default_rng(0).permutation(len(data))
    chosen = [*order[CALIBRATION:].tolist(), *order[:CALIBRATION].tolist()][:count]
    if len(chosen) < count:
        raise SystemExit(f"there are {len(chosen)} images, not {count}")
    return materialise(data.subset(chosen), 2**31)


def variants(model: Model, schemes: str, every: int) -> list[tuple[str, str]]:
    """Every N-th variant, so that layers and schemes take turns."""
    return [(layer.name, s) for layer in find_layers(model) for s in schemes.split(",")][::every]


def plain(folder: Path, args: argparse.Namespace) -> None:
    model, count = network(args.model), args.images
    data = images(count, args.model)
    order = np.random.default_rng(SEED).permutation(count)  # as the engine orders them
    data = data.subset(order.tolist())
    name = model.proto.graph.input[0].name
    batches = [batch.inputs[name] for batch in data.batches(4)]
    session = load_session(model, threads=1)
    reference = np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
    began, found = time.process_time(), {}
    for layer, scheme in variants(model, args.schemes, args.plain_every):
        policy = Policy({layer: LayerPolicy(Scheme.parse(scheme))})
        path = folder / "plain.onnx"
        save(Quantize.of(policy)(model, Context()).model, path)
        session = load_session(path, threads=1)
        logits = np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
        found[f"{layer}={Scheme.parse(scheme)}"] = (
            np.square(logits.astype(np.float64) - reference).mean(1).tolist()
        )
    write(folder / "plain.json", time.process_time() - began, found)


def ours(folder: Path, args: argparse.Namespace) -> None:
    model, precision = network(args.model), args.precision
    data = images(args.images, args.model)
    chosen = variants(model, args.schemes, 1 if precision else args.exact_every)
    wanted = [Variant.of(layer, LayerPolicy(Scheme.parse(scheme))) for layer, scheme in chosen]
    settings = Settings(precision=precision, threads=1, budget=args.budget * 2**20, seed=SEED)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"before: {held:.0f} MiB, the images among them", flush=True)
    began = time.process_time()
    found = measure_sensitivities(model, find_layers(model), data, wanted, settings)
    document = {key: entry.to_json() for key, entry in found.items()}
    write(folder / f"ours{precision:g}.json", time.process_time() - began, document)


def write(path: Path, cpu: float, found: dict[str, Any]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path.write_text(json.dumps({"cpu": cpu, "peak": peak, "found": found}))
    print(path.name, f"{cpu:.0f} CPU s, {len(found)} variants, peak {peak:.0f} MiB", flush=True)


def compare(folder: Path, args: argparse.Namespace, precision: float) -> None:
    theirs = json.loads((folder / "plain.json").read_text())
    mine = json.loads((folder / f"ours{precision:g}.json").read_text())
    worst, seen = 0.0, [entry["samples"] for entry in mine["found"].values()]
    for key, errors in theirs["found"].items():
        if key in mine["found"]:
            entry = Sensitivity.from_json(key, mine["found"][key])
            value = float(np.mean(errors[: entry.samples]))
            worst = max(worst, abs(entry.mse - value) / value)
    each = theirs["cpu"] / len(theirs["found"]), mine["cpu"] / len(mine["found"])
    runs = len(theirs["found"]), len(mine["found"])
    print(
        f"precision {precision:g}: CPU s per variant: plain {each[0]:.3f} ({runs[0]} run), engine "
        f"{each[1]:.3f} ({runs[1]} run), ratio {each[0] / each[1]:.2f}; largest relative difference "
        f"{worst:.1e}; images per variant: mean {np.mean(seen):.0f} of {args.images}; engine's peak "
        f"{mine['peak']:.0f} MiB at a budget of {args.budget} MiB for activations"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=125)
    parser.add_argument("--precision", type=float, default=0.1)
    parser.add_argument("--plain-every", type=int, default=1)
    parser.add_argument("--exact-every", type=int, default=1)
    parser.add_argument("--model", default="")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--child", choices=("plain", "ours"))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child == "plain":
        return plain(args.folder, args)
    if args.child == "ours":
        return ours(args.folder, args)
    folder = args.folder or Path(tempfile.mkdtemp())
    common = ["--folder", str(folder)]
    for name in ("images", "plain_every", "exact_every", "model", "schemes", "budget"):
        common += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    for child in (["plain"], ["ours", "--precision", "0"], ["ours", "--precision", str(args.precision)]):
        subprocess.run([sys.executable, __file__, "--child", *child, *common], check=True)
    for precision in dict.fromkeys((0.0, args.precision)):
        compare(folder, args, precision)
    return None


if __name__ == "__main__":
    main()
