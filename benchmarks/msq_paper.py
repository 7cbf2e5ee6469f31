"""MSQ's own row: ResNet-20 on CIFAR-10 from scratch, 400 epochs, weights 16x smaller, activations float, 3,
2.

    python benchmarks/msq_paper.py --folder F --data TRAIN.zip --validation TEST.zip [--device cuda] [--for
    9m]

One call works for --for at most (and a minute to begin and end), then stops at a checkpoint; call it again,
with the same line, until it says that all is done. Needs torch; meant for a GPU, on which the images are
kept. Stages:
1. a network with random weights as an ONNX file, 2. the float baseline, 3. MSQ at A32, 4. at A3, 5. at A2,
each 400 epochs from the same random weights. Setup of the paper: SGD 0.1, cosine, batch 1024; compression 16,
which is the most that files of 2 bits a weight hold (the paper: 16.13x and 20.13x). Paper: float 92.62; A32
92.17 at 16.13x; A3 92.00 at 17.43x; A2 90.60 at 16.43x. Asked: A32 at most 0.5 points below our own float.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from models.train import ResNet20

PAPER = ("--epochs", "400", "--batch", "1024", "--lr", "0.1", "--decay", "5e-4", "--seed", "0")
STAGES = {
    "float": ("--method", "qat", "--weights", "float"),
    "msq-a32": ("--method", "msq", "--compression", "16"),
    "msq-a3": ("--method", "msq", "--compression", "16", "--activations", "3"),
    "msq-a2": ("--method", "msq", "--compression", "16", "--activations", "2"),
}


def random_network(path: Path) -> None:
    torch.manual_seed(0)
    torch.onnx.export(
        ResNet20(),
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )


def piece(name: str, args: argparse.Namespace) -> int:
    """Go on with a stage; the exit code of `onnxq train`: 0 done, 4 stopped in time."""
    given = {"--data": args.data, "--validation": args.validation, "--preprocess": "cifar"}
    given |= {"--for": args.limit, "--epochs": str(args.epochs), "--device": args.device}
    given["-o"] = str(args.folder / f"{name}.onnx")
    options = [*STAGES[name], *PAPER, *(text for pair in given.items() for text in pair), "--json"]
    command = [sys.executable, "-m", "onnxq", "train", str(args.folder / "random.onnx"), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        (args.folder / f"{name}.json").write_text(done.stdout)
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=float, default=400)
    parser.add_argument("--for", dest="limit", default="9m")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "random.onnx").exists():
        random_network(args.folder / "random.onnx")
    for name in STAGES:
        if not (args.folder / f"{name}.json").exists():
            code = piece(name, args)
            print(
                f"{name}: "
                f"{'done' if code == 0 else 'stopped, call again' if code == 4 else f'failed ({code})'}"
            )
            if code not in (0, 4):
                raise SystemExit(code)
            if code == 4 or name != list(STAGES)[-1]:
                return
    print("| stage | top-1 | below float |\n| --- | --- | --- |")
    reference = 0.0
    for name in STAGES:
        found = json.loads((args.folder / f"{name}.json").read_text())["accuracy"]
        reference = found if name == "float" else reference
        print(f"| {name} | {100 * found:.2f} | {100 * (reference - found):.2f} |")


if __name__ == "__main__":
    main()
