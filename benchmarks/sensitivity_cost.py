"""CPU time of all sensitivities of EfficientNet-Lite0: the plain way against the engine.

    python benchmarks/sensitivity_cost.py [--images 125] [--precision 0.1] [--plain-every 1]

50 layers x GSE b in {2, 3, 4, 6, 8} (G = 32, weights only), the first images of the evaluation split, one
thread. Plain, per variant: the quantize pass, the file written, loaded into a new session, run over all
images in batches of 4 (its fastest), logit MSE. Engine: `measure_sensitivities`, once with precision 0 (every
image) and once with --precision; a value that stopped early is compared with the plain way's on the same
images.
--plain-every N takes every N-th variant of the plain way and scales its time up. Every way in a process of
its own; peak memory is that process's.
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
from imagenet import prepared, split

from onnxq.data import Dataset
from onnxq.evaluation import load_session
from onnxq.sensitivity import Sensitivity, Settings, Variant, measure_sensitivities
from passes import Context, LayerPolicy, Policy, Quantize, Scheme, find_layers, save

SCHEMES = ("gse2", "gse3", "gse4", "gse6", "gse8")
SEED = 0


def images(count: int) -> Dataset:
    evaluation = split(prepared())[1]
    while len(evaluation) < count:
        raise SystemExit(f"the evaluation split has {len(evaluation)} images, not {count}")
    return evaluation.subset(range(count))


def variants() -> list[tuple[str, str]]:
    return [(layer.name, scheme) for layer in find_layers(prepared()) for scheme in SCHEMES]


def plain(folder: Path, count: int, every: int) -> None:
    model, data = prepared(), images(count)
    order = np.random.default_rng(SEED).permutation(count)  # as the engine orders them
    data = data.subset(order.tolist())
    name = model.proto.graph.input[0].name
    batches = [batch.inputs[name] for batch in data.batches(4)]
    session = load_session(model, threads=1)
    reference = np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
    began, found = time.process_time(), {}
    for layer, scheme in variants()[::every]:
        policy = Policy({layer: LayerPolicy(Scheme.parse(scheme))})
        path = folder / "plain.onnx"
        save(Quantize.of(policy)(model, Context()).model, path)
        session = load_session(path, threads=1)
        logits = np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
        found[f"{layer}={Scheme.parse(scheme)}"] = (
            np.square(logits.astype(np.float64) - reference).mean(1).tolist()
        )
    write(folder / "plain.json", time.process_time() - began, found)


def ours(folder: Path, count: int, precision: float) -> None:
    model, data = prepared(), images(count)
    wanted = [Variant.of(layer, LayerPolicy(Scheme.parse(scheme))) for layer, scheme in variants()]
    settings = Settings(precision=precision, threads=1, seed=SEED)
    began = time.process_time()
    found = measure_sensitivities(model, find_layers(model), data, wanted, settings)
    document = {key: entry.to_json() for key, entry in found.items()}
    write(folder / f"ours{precision:g}.json", time.process_time() - began, document)


def write(path: Path, cpu: float, found: dict[str, Any]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path.write_text(json.dumps({"cpu": cpu, "peak": peak, "found": found}))
    print(path.name, f"{cpu:.0f} CPU s, {len(found)} variants, peak {peak:.0f} MiB", flush=True)


def compare(folder: Path, count: int, precision: float, every: int) -> None:
    theirs = json.loads((folder / "plain.json").read_text())
    mine = json.loads((folder / f"ours{precision:g}.json").read_text())
    worst, seen = 0.0, []
    for key, errors in theirs["found"].items():
        entry = Sensitivity.from_json(key, mine["found"][key])
        value = float(np.mean(errors[: entry.samples]))
        worst = max(worst, abs(entry.mse - value) / value)
    seen = [entry["samples"] for entry in mine["found"].values()]
    whole = theirs["cpu"] * len(mine["found"]) / len(theirs["found"])
    print(
        f"precision {precision:g}: plain {whole:.0f} CPU s{' (scaled up)' if every > 1 else ''}, engine "
        f"{mine['cpu']:.0f} CPU s, ratio {whole / mine['cpu']:.2f}; largest relative difference {worst:.1e}; "
        f"images per variant: mean {np.mean(seen):.0f} of {count}; engine's peak {mine['peak']:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=125)
    parser.add_argument("--precision", type=float, default=0.1)
    parser.add_argument("--plain-every", type=int, default=1)
    parser.add_argument("--child", choices=("plain", "ours"))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child == "plain":
        return plain(args.folder, args.images, args.plain_every)
    if args.child == "ours":
        return ours(args.folder, args.images, args.precision)
    folder = args.folder or Path(tempfile.mkdtemp())
    common = ["--folder", str(folder), "--images", str(args.images), "--plain-every", str(args.plain_every)]
    for child in (["plain"], ["ours", "--precision", "0"], ["ours", "--precision", str(args.precision)]):
        subprocess.run([sys.executable, __file__, "--child", *child, *common], check=True)
    for precision in (0.0, args.precision):
        compare(folder, args.images, precision, args.plain_every)
    return None


if __name__ == "__main__":
    main()
