"""Kendall's tau between SMPQ's alpha and the accuracy of discretized policies, from a finished `train
--method smpq`.

    onnxq train models/resnet20.onnx --method smpq --activations 4 --bops 0.25 ... -o smpq.onnx
    python benchmarks/training_smpq.py smpq.train --data TRAIN.zip --validation TEST.zip [--policies 10]

Policies are drawn at random, every layer at any width. Each runs with the supernet's weights at its widths,
the statistics of BatchNormalization estimated anew on 20 batches, and is measured on 2,000 test images. A
policy's alpha is the sum over its layers of what its players up to the chosen width are worth (negative
alpha counts 0), as in the integer program that chooses. The paper's tau is 0.494.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from onnxq.data import input_specs, open_dataset
from onnxq.training.config import TrainConfig
from onnxq.training.run import Run
from onnxq.training.search import supernet_of
from onnxq.training.supernet import Supernet
from onnxq.training.trainer import accuracy
from passes.graph.model import load

BATCHES = 20


@torch.no_grad()
def measured(run: Run, supernet: Supernet, widths: np.ndarray) -> float:
    supernet.choose(widths)
    run.network.estimate_moved(run.data.at(index)[0] for index in range(BATCHES))
    assert run.validation is not None
    return accuracy(run.network, run.validation, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="models/resnet20.onnx")
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--policies", type=int, default=10)
    args = parser.parse_args()
    model = load(args.model)
    specs = input_specs(model.proto)
    data = open_dataset(args.data, specs, preprocess="cifar", limit=BATCHES * 128)
    validation = open_dataset(args.validation, specs, preprocess="cifar")
    config = TrainConfig(method="smpq", activations="4", bops=0.25, threads=1)
    run = Run(config, model, data, validation)
    supernet = supernet_of(run, run.data, 1)
    state = torch.load(args.folder / "search" / "checkpoint.pt", weights_only=True)
    supernet.restore(state["method"])
    run.network.load_state_dict(state["network"])
    gains = np.cumsum(np.maximum(supernet.alpha, 0) * (np.arange(len(config.bits)) > 0), axis=1)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(args.policies):
        widths = random.integers(len(config.bits), size=len(supernet.layers))
        worth = float(gains[np.arange(len(widths)), widths].sum())
        rows.append((worth, measured(run, supernet, widths)))
        print(f"alpha {worth:.3f}, top-1 {rows[-1][1]:.4f}", flush=True)
    found = kendalltau(*zip(*rows, strict=True))
    print(f"Kendall's tau {found.statistic:.3f} (p {found.pvalue:.3f}) over {len(rows)} policies")


if __name__ == "__main__":
    main()
