"""Peak memory of calibration against the number of samples: onnxq's one pass and onnxruntime's calibrators.

Every row is a fresh process; its peak RSS (resource.getrusage, MiB) and wall time make a Markdown
table. Images are repeated cyclically where there are fewer than asked for. Both tools watch the same tensors:
what feeds and leaves every Conv, Gemm and MatMul. Run from the repository root:

    python benchmarks/calibration_memory.py            # all rows; onnxruntime's take many GB and minutes
    python benchmarks/calibration_memory.py --ours-only --samples 32
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("minmax", "percentile", "entropy")
QUANTIZED = ("Conv", "Gemm", "MatMul")


def main() -> None:
    """Parse the command line; the hidden --worker measures one row in this process."""
    args = _arguments()
    if args.worker:
        print(json.dumps(_worker(args)))
        return
    rows = [("onnxq", method, count) for method in METHODS for count in args.samples]
    if not args.ours_only:
        rows += [("onnxruntime", method, count) for method in METHODS for count in args.ort_samples]
    print("| tool | method | samples | peak RSS (MiB) | time (s) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for tool, method, count in rows:
        print(f"| {tool} | {method} | {count} | {_measure(args, tool, method, count)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of calibration against the number of samples.")
    parser.add_argument("--model", type=Path, default=ROOT / "../shared/models/efficientnet_lite0.onnx")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data/imagenet-500")
    parser.add_argument("--preprocess", default="efficientnet-lite")
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 1024], help="rows of onnxq")
    parser.add_argument("--ort-samples", type=int, nargs="+", default=[32, 125], help="rows of onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="largest batch of onnxq; onnxruntime gets 1")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "METHOD", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(args: argparse.Namespace, tool: str, method: str, count: int) -> str:
    """The last two cells of a row; a process that dies (out of memory) is a row too."""
    command = [sys.executable, __file__, "--worker", tool, method, str(count)]
    for option in ("model", "data", "preprocess", "threads", "batch"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return f"failed: {reason[:80]} | "
    result = json.loads(done.stdout.splitlines()[-1])
    return f"{result['rss_mib']:,.0f} | {result['seconds']:.1f}"


def _worker(args: argparse.Namespace) -> dict[str, float]:
    tool, method, count = args.worker[0], args.worker[1], int(args.worker[2])
    start = time.perf_counter()
    (_ours if tool == "onnxq" else _onnxruntime)(args, method, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"rss_mib": peak / unit, "seconds": time.perf_counter() - start}


def _dataset(args: argparse.Namespace, count: int) -> tuple[Any, Any]:
    """The model and `count` samples of the folder, repeated when it has fewer."""
    sys.path.insert(0, str(ROOT))
    import onnx

    from onnxq.data import input_specs, open_dataset

    model = onnx.load(args.model)
    data = open_dataset(args.data, input_specs(model), preprocess=args.preprocess)
    return model, data.subset([index % len(data) for index in range(count)])


def _ours(args: argparse.Namespace, method: str, count: int) -> None:
    model, data = _dataset(args, count)
    from onnxq.calibration import CalibratedRanges

    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in QUANTIZED]
    names = dict.fromkeys(
        name for node in nodes for name in [*node.input, *node.output] if name not in weights
    )
    provider = CalibratedRanges(data, method, batch_size=args.batch, threads=args.threads)
    provider(model, [(name, 8) for name in names])


def _onnxruntime(args: argparse.Namespace, method: str, count: int) -> None:
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    _, data = _dataset(args, count)
    batches: Iterator[Any] = data.batches(1)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            batch = next(batches, None)
            return None if batch is None else batch.inputs

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(args.model, list(QUANTIZED), augmented, kinds[method])
        options = ort.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        calibrator.infer_session = ort.InferenceSession(
            augmented, options, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


if __name__ == "__main__":
    main()
