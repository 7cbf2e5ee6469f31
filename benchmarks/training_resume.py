"""SIGKILL at random moments of `onnxq train`: the same file as without, and the same file for the same seed.

    python benchmarks/training_resume.py [--kills 4] [--method msq]       # needs torch

ResNet-20 on the 1,000 shipped test images for two epochs of 20 steps, float32, one thread; a checkpoint after
every step. Prints the SHA-256 of the file of an undisturbed training, of a second one, and of a killed one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(method: str, target: Path) -> list[str]:
    data = "models/cifar10/test"
    return [
        *(sys.executable, "-m", "onnxq", "train", "models/resnet20.onnx", "--method", method, "--data", data),
        *("--preprocess", "cifar", "--epochs", "2", "--batch", "50", "--compression", "12", "--threads", "1"),
        *("--checkpoint", "0s", "-o", str(target)),
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def whole(method: str, target: Path) -> float:
    began = time.monotonic()
    subprocess.run(command(method, target), check=True, capture_output=True)
    return time.monotonic() - began


def killed(line: list[str], folder: Path) -> bool:
    """Kill a training some checkpoints after it has begun; False where it ended before."""
    checkpoint = folder / "checkpoint.pt"
    left, seen = random.randint(2, 7), None
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while left and child.poll() is None:
        time.sleep(0.01)
        now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        left -= now != seen
        seen = now
    alive = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--method", default="msq")
    args = parser.parse_args()
    random.seed(0)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = whole(args.method, folder / "a.onnx")
        whole(args.method, folder / "b.onnx")
        kills = 0
        while kills < args.kills and killed(command(args.method, folder / "c.onnx"), folder / "c.train"):
            kills += 1
        whole(args.method, folder / "c.onnx")
        found = [digest(folder / f"{letter}.onnx") for letter in "abc"]
    print(f"undisturbed {found[0]} ({taken:.0f} s), again {found[1]}, killed {kills} times {found[2]}")
    raise SystemExit(0 if len(set(found)) == 1 and kills == args.kills else 1)


if __name__ == "__main__":
    main()
