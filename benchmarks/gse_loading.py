"""What bit streams cost when a session is created and when it runs: EfficientNet-Lite0, by default in GSE-6.

    python benchmarks/gse_loading.py [--weights tcq3]

Ways in turns, in one process, one thread, each from a file: the float export as it came, the same model with
BatchNorm folded (what the streams decode to), the streams in stock ONNX Runtime (the file's own function),
with the C++ library registered, and through onnxq.load_session. Ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagenet
import numpy as np
import onnxruntime as ort

from onnxq.evaluation import load_session
from passes import Decode, Quantize, save
from runtime_ops.library import register


def stock(path: Path, library: bool = False) -> Any:
    """A session as any user of ONNX Runtime makes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if library:
        register(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def medians(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each way; one run of each per turn, forwards and backwards."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            start = time.perf_counter()
            held = ways[name]()
            times[name].append(time.perf_counter() - start)
            del held
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--weights", default="gse6")
    args = parser.parse_args()
    model = imagenet.prepared()
    made = Quantize(weights=args.weights, activations="float")(model).model
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(made, folder / "streams.onnx")
        save(Decode()(made).model, folder / "float.onnx")
        ways: dict[str, Callable[[], Any]] = {
            "float, as exported": lambda: stock(imagenet.MODEL),
            "float, BatchNorm folded": lambda: stock(folder / "float.onnx"),
            "float, BatchNorm folded, load_session": lambda: load_session(folder / "float.onnx", threads=1),
            f"{args.weights}, stock ONNX Runtime": lambda: stock(folder / "streams.onnx"),
            f"{args.weights}, library registered": lambda: stock(folder / "streams.onnx", library=True),
            f"{args.weights}, load_session": lambda: load_session(folder / "streams.onnx", threads=1),
        }
        created = medians(ways, args.turns)
        feed = {"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}
        sessions = {label: way() for label, way in ways.items()}
        outputs = {label: session.run(None, feed)[0] for label, session in sessions.items()}
        runs = {label: (lambda s=session: s.run(None, feed)) for label, session in sessions.items()}
        ran = medians(runs, 3 * args.turns)
    exact = outputs["float, BatchNorm folded"]
    print("| way | creation / folded float | creation / exported float | run / folded float | same bits |")
    print("| --- | ---: | ---: | ---: | --- |")
    for label in ways:
        ratios = [
            created[label] / created[name] for name in ("float, BatchNorm folded", "float, as exported")
        ]
        same = "yes" if np.array_equal(outputs[label], exact) else "no"
        speed = ran[label] / ran["float, BatchNorm folded"]
        print(f"| {label} | {ratios[0]:.2f} | {ratios[1]:.2f} | {speed:.3f} | {same} |")


if __name__ == "__main__":
    main()
