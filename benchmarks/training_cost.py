"""What MSQ costs beside plain training: time of a step and peak memory, ResNet-20 on one thread.

    python benchmarks/training_cost.py [--steps 40] [--batch 128]        # needs torch; no data

Steps of the two are interleaved; asked: a ratio of medians of at most 1.3. MSQ's step is one with the
regularizer at work; a round (LSB counts, Hutchinson traces, pruning) is timed apart and spread over the steps
between two rounds as `onnxq train` has them by default. Plain is the same trainer with the same RoundClamp
quantizers (`--method qat --quantizer roundclamp`). Memory is the peak resident set of a process of its own
that takes ten steps, with MSQ one round among them; asked: at most 1.15 times.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxq.data import input_specs, open_dataset
from onnxq.training.config import TrainConfig
from onnxq.training.run import Run
from onnxq.training.trainer import Trainer
from passes.graph.model import load

MODEL = "models/resnet20.onnx"
KINDS = ("qat", "msq")


def dataset(samples: int) -> Any:
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, 3, 32, 32)).astype(np.float32)
    labels = random.integers(0, 10, samples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.npz"
        np.savez(path, x=x, y=labels)
        return open_dataset(path, input_specs(load(MODEL).proto))


def trainer(kind: str, batch: int) -> Trainer:
    # An epoch of 16 steps, so that rounds come where they come in 50,000 images, in proportion.
    config = TrainConfig(
        method=kind,
        epochs=100,
        batch=batch,
        compression=16,
        weights="int8",
        threads=1,
        quantizer="roundclamp",
    )
    run = Run(config, load(MODEL), dataset(16 * batch))
    made = run.trainer(run.method(), run.settings(config.epochs))
    made.network.train()
    return made


def step(made: Trainer) -> float:
    began = time.perf_counter()
    made._one()
    taken = time.perf_counter() - began
    made.step += 1
    return taken


def memory(kind: str, batch: int) -> None:
    made = trainer(kind, batch)
    for _ in range(5):
        step(made)
    if kind == "msq":
        made.method._measure(made.step, made.loss)  # type: ignore[attr-defined]
    for _ in range(5):
        step(made)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--memory", choices=KINDS)
    args = parser.parse_args()
    if args.memory:
        memory(args.memory, args.batch)
        return
    made = {kind: trainer(kind, args.batch) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(args.steps + 3):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            taken = step(made[kind])
            if turn >= 3:
                times[kind].append(taken)
    median = {kind: statistics.median(times[kind]) for kind in KINDS}
    began = time.perf_counter()
    made["msq"].method._measure(made["msq"].step, made["msq"].loss)  # type: ignore[attr-defined]
    one_round = time.perf_counter() - began
    epoch = 50_000 // args.batch
    between = 0.4 * 12 * epoch / 8
    print(f"step: plain {median['qat'] * 1e3:.0f} ms, MSQ {median['msq'] * 1e3:.0f} ms")
    print(f"ratio of medians {median['msq'] / median['qat']:.3f}")
    print(f"a round {one_round:.2f} s, each {between:.0f} steps: {one_round / between * 1e3:.1f} ms a step")
    print(f"ratio with rounds {(median['msq'] + one_round / between) / median['qat']:.3f}")
    peak = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--memory", kind, "--batch", str(args.batch)]
        peak[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"peak memory: plain {peak['qat'] / 1e3:.0f} MB, MSQ {peak['msq'] / 1e3:.0f} MB")
    print(f"ratio {peak['msq'] / peak['qat']:.3f}")
    counts = {kind: sum(p.numel() for p in made[kind].network.parameters()) for kind in KINDS}
    print(f"trainable values: plain {counts['qat']:,}, MSQ {counts['msq']:,}")
    del made
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
