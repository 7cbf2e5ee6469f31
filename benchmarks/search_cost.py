"""CPU time of `tune --strategy ranking` against a plain TuneQn loop, same model, same images.

    python benchmarks/search_cost.py [--steps 51] [--plain-steps 51]

Plain: for each step onnxruntime's quantize_static with nodes_to_exclude (calibration included), a new
session, a full evaluation; batches of 8 held in memory, one thread. The ranking is taken from ours, so
that both measure the same 50 steps. Ours: everything from the model file to the finished run folder.
Both in process CPU seconds of a fresh process each.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from imagenet import DATA, MODEL, prepared, quantize_with_onnxruntime, split


def ours(folder: Path) -> None:
    from onnxq.tuning import TuneConfig, tune

    config = TuneConfig(
        model=str(MODEL),
        data=str(DATA),
        preprocess="efficientnet-lite",
        modes=("static",),
        objectives="metric,bytes",
        threads=1,
    )
    result = tune(config, folder / "run")
    steps = [
        {"changed": list(c.changed), "top1": c.metrics["top1"], "samples": c.samples, "bytes": c.bytes}
        for c in sorted(result.candidates, key=lambda c: c.step)
    ]
    (folder / "ours.json").write_text(json.dumps({"cpu": time.process_time(), "steps": steps}))


def plain(folder: Path, limit: int) -> None:
    import onnxruntime as ort

    steps = json.loads((folder / "ours.json").read_text())["steps"][:limit]
    logging.disable(logging.WARNING)
    model = prepared()
    calibration, evaluation = split(model)
    began, found = time.process_time(), []
    for step in steps:
        start = time.process_time()
        path = folder / "plain.onnx"
        quantize_with_onnxruntime(model, path, calibration, per_channel=True, exclude=step["changed"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        hits = sum(
            int((session.run(None, batch.inputs)[0].argmax(axis=1) == batch.labels).sum())
            for batch in evaluation.batches(8)
        )
        found.append({"top1": hits / len(evaluation), "cpu": time.process_time() - start})
        print(len(found), found[-1], flush=True)
    (folder / "plain.json").write_text(json.dumps({"cpu": time.process_time() - began, "steps": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain-steps", type=int, default=1000)
    parser.add_argument("--child", choices=("ours", "plain"))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child == "ours":
        return ours(args.folder)
    if args.child == "plain":
        return plain(args.folder, args.plain_steps)
    folder = args.folder or Path(tempfile.mkdtemp())
    for child in ("ours", "plain"):
        command = [sys.executable, __file__, "--child", child, "--folder", str(folder)]
        subprocess.run([*command, "--plain-steps", str(args.plain_steps)], check=True)
    mine = json.loads((folder / "ours.json").read_text())
    other = json.loads((folder / "plain.json").read_text())
    count = len(other["steps"])
    whole = other["cpu"] * len(mine["steps"]) / count
    gaps = np.array([a["top1"] - b["top1"] for a, b in zip(mine["steps"], other["steps"], strict=False)])
    full = np.array([s["samples"] == 400 for s in mine["steps"][:count]])
    print(f"steps: ours {len(mine['steps'])}, plain {count}")
    print(f"CPU seconds: ours {mine['cpu']:.0f}, plain {whole:.0f}; ratio {whole / mine['cpu']:.2f}x")
    print(f"top-1 ours - plain per step: mean {gaps.mean():+.4f}, largest |gap| {np.abs(gaps).max():.4f}")
    print(f"steps measured on all 400 images: {full.sum()} of {count}")
    return None


if __name__ == "__main__":
    main()
