"""EfficientNet-Lite0 on devices: agreement with ONNX Runtime, ratios, repeatability, two fronts (needs
../shared).

    python benchmarks/devices.py agreement      # float, W8A8, GSE-6 on TVM: here, RPC server, RPC tracker;
    400 images python benchmarks/devices.py ratios         # time over ONNX Runtime's: schedules of TVM,
    execution providers python benchmarks/devices.py repeat         # five candidates ranked twice, with
    other load on the machine python benchmarks/devices.py fronts         # two fronts on two devices, in
    one report (a small network) python benchmarks/devices.py openvino       # ONNX Runtime with OpenVINO,
    beside the CPU provider (its own venv)
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.imagenet import prepared, split
from onnxq import calibrate
from onnxq.report import write_comparison
from onnxq.runners import open_runner
from onnxq.runners.agreement import distance, refuse_disagreement
from onnxq.runners.timing import Comparison, compare
from onnxq.tuning import TuneConfig, tune
from passes.core.errors import UserError
from passes.core.recipe import parse_recipe
from passes.graph.model import Model
from tests.rpc import serve, track

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 400
BATCH = 4


def variants(model: Model, calibration: Any) -> dict[str, Model]:
    context = calibrate(calibration, "percentile:99.99")

    def made(text: str) -> Model:
        return parse_recipe(text)(model, context).model

    return {
        "float": model,
        "W8A8": made("quantize{weights=int8:channel}"),
        "GSE-6": made("quantize{weights=gse6 activations=float}"),
    }


def agreement() -> None:
    model = prepared()
    calibration, data = split(model)
    models = variants(model, calibration)
    batches = [batch.inputs for batch in itertools.islice(data.batches(BATCH), IMAGES // BATCH)]
    cpu = open_runner("ort:cpu", 1)
    expected: dict[str, list[Any]] = {}
    for name, each in models.items():
        program = cpu.prepare(each)
        expected[name] = [program.run(feed)[0] for feed in batches]
    with serve() as server, track() as tracker, serve(tracker=tracker.port, key="bench"):
        devices = {
            "TVM llvm here": "tvm:llvm",
            "TVM, RPC server": f"tvm://127.0.0.1:{server.port}?target=llvm",
            "TVM, RPC tracker": f"tvm://127.0.0.1:{tracker.port}?target=llvm&key=bench",
        }
        print(f"{'device':18} {'model':6} {'largest difference / largest logit':>36} {'same top-1':>12}")
        for label, device in devices.items():
            runner = open_runner(device, 2)
            for name, each in models.items():
                program = runner.prepare(each, BATCH)
                worst, same, count = 0.0, 0, 0
                for feed, theirs in zip(batches, expected[name], strict=True):
                    ours = program.run(feed)[0]
                    worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
                    same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
                    count += len(ours)
                program.close()
                print(f"{label:18} {name:6} {worst:36.2e} {same:6d} of {count}", flush=True)
            runner.close()


def _against_cpu(device: str, model: Model, feed: Any, runs: int = 15) -> Comparison:
    """Time on a device over that of ONNX Runtime's CPU provider, in turns, both on two threads."""
    runner, cpu = open_runner(device, 2), open_runner("ort:cpu", 2)
    try:
        program, reference = runner.prepare(model), cpu.prepare(model)
        refuse_disagreement(runner, program, model, [feed])
        for note in program.notes:
            print(f"  {note}")
        return compare(program, reference, feed, runs=runs, rounds=2)
    finally:
        runner.close()


def ratios(devices: Sequence[str] = ("tvm:llvm", "tvm:llvm?schedule=default")) -> None:
    model = prepared()
    calibration, data = split(model)
    feed = next(data.batches(1)).inputs
    print(f"{'device':44} {'model':6} {'ms':>8} {'ORT CPU ms':>11} {'ratio':>7}   95 % interval")
    for device in devices:
        for name, each in variants(model, calibration).items():
            try:
                found = _against_cpu(device, each, feed)
            except UserError as error:
                print(f"{device:44} {name:6} {error}")
                continue
            times = f"{found.ours.median:8.1f} {found.theirs.median:11.1f} {found.ratio:7.2f}"
            print(f"{device:44} {name:6} {times}   {found.low:.2f} to {found.high:.2f}", flush=True)


def openvino() -> None:
    devices = ["ort:openvino", "ort:openvino?precision=bf16&tolerance=1"]
    ratios(devices)
    model = prepared()
    calibration, data = split(model)
    feed = next(data.batches(1)).inputs
    context = calibrate(calibration, "percentile:99.99")
    wide = parse_recipe("quantize{weights=int8:channel activations=uint16}")(model, context).model
    runner = open_runner("ort:openvino", 2)
    cpu = open_runner("ort:cpu", 2).prepare(wide).run(feed)
    print(
        f"A16W8 on OpenVINO: {distance(runner.prepare(wide).run(feed), cpu):.3g} away from the CPU (relative)"
    )
    try:
        refuse_disagreement(runner, runner.prepare(wide), wide, [feed])
    except UserError as error:
        print(error)


def _burn(stop: Any) -> None:
    """Other load: matrix products in bursts of random length."""
    rng = np.random.default_rng()
    while not stop.is_set():
        matrix = rng.standard_normal((600, 600))
        for _ in range(int(rng.integers(1, 40))):
            matrix = np.tanh(matrix @ matrix.T / 600)
        stop.wait(float(rng.uniform(0, 0.3)))


@contextlib.contextmanager
def other_load(processes: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    burning = [context.Process(target=_burn, args=(stop,), daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in burning:
            process.join()


def repeat(load: int = 2) -> None:
    """Five candidates by their ratio to float, twice, with `load` processes of other load."""
    model = prepared()
    calibration, data = split(model)
    feed = next(data.batches(1)).inputs
    context = calibrate(calibration, "percentile:99.99")
    recipes = {
        "W8A8": "quantize{weights=int8:channel}",
        "W8A8, depthwise float": "quantize{weights=int8:channel exclude=*depthwise*}",
        "W8A8, pointwise float": "quantize{weights=int8:channel exclude=*project*,*expand*,*head*}",
        "GSE-6": "quantize{weights=gse6 activations=float}",
        "dynamic W8": "quantize{weights=int8:channel activations=uint8:dynamic}",
    }
    runner = open_runner("ort:cpu", 1)
    baseline = runner.prepare(model)
    programs = {
        name: runner.prepare(parse_recipe(text)(model, context).model) for name, text in recipes.items()
    }
    with other_load(load):
        found = [
            {name: compare(p, baseline, feed, runs=20, rounds=4) for name, p in programs.items()}
            for _ in range(2)
        ]
    print(f"other load: {load} processes of matrix products in random bursts, on two cores")
    for name in recipes:
        parts = [f"{run[name].ratio:.3f} ({run[name].low:.3f} to {run[name].high:.3f})" for run in found]
        print(f"{name:24} {parts[0]:28} {parts[1]:28}")
    pairs = list(itertools.combinations(recipes, 2))
    apart = [(a, b) for a, b in pairs if not any(run[a].overlaps(run[b]) for run in found)]
    kept = [(a, b) for a, b in apart if len({run[a].ratio < run[b].ratio for run in found}) == 1]
    print(f"{len(pairs)} pairs, {len(apart)} with intervals apart in both, {len(kept)} of them in one order")


def fronts(folder: Path) -> None:
    """resnet20 searched by latency on ONNX Runtime's CPU and on TVM llvm over RPC; one report of both."""
    common = {
        "model": str(ROOT / "models" / "resnet20.onnx"),
        "data": str(ROOT / "models" / "cifar10" / "test"),
        "calibration_data": str(ROOT / "models" / "cifar10" / "calibration"),
        "preprocess": "cifar",
        "modes": ("static",),
        "weights": ("int8:channel",),
        "threads": 1,
        "latency_runs": 20,
    }
    with serve() as server:
        runs = {"ort": "ort:cpu", "tvm-rpc": f"tvm://127.0.0.1:{server.port}?target=llvm&cores=1"}
        for name, device in runs.items():
            config = TuneConfig(objectives=f"metric,bytes,latency@{device}", **common)  # type: ignore[arg-type]
            result = tune(config, folder / name)
            print(f"{device}: {len(result.candidates)} candidates, {len(result.front)} on the front")
            for member in sorted(result.front, key=lambda c: c.latency.ratio if c.latency else 0.0):
                assert member.latency is not None
                ratio, top1 = member.latency.ratio, 100 * member.metrics["top1"]
                print(f"  {member.name:14} {ratio:6.3f} of float, {top1:.1f} %, {member.bytes / 1e6:.3f} MB")
    comparison = write_comparison([folder / name for name in runs], folder / "compare")
    print(comparison["summary"])
    print(folder / "compare" / "compare.html")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["agreement", "ratios", "repeat", "fronts", "openvino"])
    parser.add_argument("--folder", type=Path, help="of `fronts`; default a new temporary one")
    options = parser.parse_args()
    if options.what == "fronts":
        fronts(options.folder or Path(tempfile.mkdtemp(prefix="onnxq-fronts-")))
        return
    getattr(sys.modules[__name__], options.what)()


if __name__ == "__main__":
    main()
