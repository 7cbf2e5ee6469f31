"""Kill a tune again and again, resume it, and compare with one that was left alone.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0] [--strategy ilp ...] [--workers 2]
        [--signals KILL TERM HUP]

Each round starts `onnxq tune` as a process, sends it a signal at a random moment (the signals in turn), and
checks every file of the run folder and that no process of it is left. After the last kill the run is
finished. Prints a table; exit code 1 when something was measured twice or lost (candidate, sensitivity,
policy's value, walk), the front differs from that of one process left alone, a file was broken, a process
outlived its parent, or a temporary folder is left at the end.
--strategy: one or several of those that spend bits; without it the default, by ranking.
tests/onnxq/test_cli_kill.py runs a short version, test_strategies.py one for each strategy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

_DEAR = ("candidate", "sensitivity", "value", "walk")
SPENDING: tuple[str, ...] = ("--mode", "weights", "--weights", "gse2,gse4,gse8", "--front", "4")
OPTIONS = {
    "shapley": ("--permutations", "2"),
    "nsga2": ("--generations", "2"),
    "auto": ("--generations", "2"),
}
_ENDS = {".html": b"</html>", ".png": b"IEND"}
ROOT = Path(__file__).resolve().parent.parent
_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
deep (float[N,3,16,16] x) => (float[N,10] y) {{
  {body}
  p = GlobalAveragePool(t{last})
  f = Flatten(p)
  y = Gemm<transB=1>(f, wf, bf)
}}
"""


@dataclass
class Outcome:
    """What a killed and resumed run came to."""

    kills: int
    seconds: float
    measured: int
    twice: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    orphans: int = 0
    left: list[str] = field(default_factory=list)
    front_equal: bool = False
    models_equal: bool = False

    @property
    def good(self) -> bool:
        wrong = self.twice or self.broken or self.lost or self.orphans or self.left
        return not wrong and self.front_equal and self.models_equal


def make_inputs(folder: Path, layers: int, samples: int, seed: int = 0) -> tuple[Path, Path]:
    """A random network of `layers` convolutions, and inputs that it labels itself."""
    import onnxruntime as ort

    rng = np.random.default_rng(seed)
    body = "\n  ".join(
        f"c{i} = Conv<pads=[1,1,1,1]>({'x' if i == 0 else f't{i - 1}'}, w{i})\n  t{i} = Relu(c{i})"
        for i in range(layers)
    )
    model = parser.parse_model(_GRAPH.format(body=body, last=layers - 1))
    shapes: dict[str, tuple[int, ...]] = {f"w{i}": (32, 3 if i == 0 else 32, 3, 3) for i in range(layers)} | {
        "wf": (10, 32),
        "bf": (10,),
    }
    for name, shape in shapes.items():
        spread = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
        array = (rng.standard_normal(shape) * spread).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "deep.onnx")
    x = rng.standard_normal((samples, 3, 16, 16)).astype(np.float32)
    session = ort.InferenceSession(str(folder / "deep.onnx"), providers=["CPUExecutionProvider"])
    np.savez(folder / "data.npz", x=x, y=np.asarray(session.run(None, {"x": x})[0]).argmax(axis=1))
    return folder / "deep.onnx", folder / "data.npz"


def command(model: Path, data: Path, run: Path, *more: str) -> list[str]:
    options = [
        "--metric",
        "sqnr",
        "--objectives",
        "metric,bytes",
        "--calibration-samples",
        "16",
        "--threads",
        "1",
    ]
    return [
        sys.executable,
        "-m",
        "onnxq",
        "tune",
        str(model),
        "--data",
        str(data),
        "-o",
        str(run),
        *options,
        *more,
    ]


def start(arguments: list[str], temporary: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, by which what it started is found."""
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def session(leader: int) -> list[int]:
    """The living processes of a session (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (place / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(int(place.name))
    return found


def orphans(leader: int) -> int:
    """How many processes outlive their parent by more than five seconds; they are ended then."""
    end = time.monotonic() + 5.0
    while (left := session(leader)) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return len(left)


def finish(arguments: list[str], temporary: Path) -> float:
    """Run to the end; the seconds it took."""
    begin = time.monotonic()
    process = start(arguments, temporary)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"tune ended with {process.returncode}: {errors.decode()[-500:]}")
    return time.monotonic() - begin


def candidates(run: Path) -> list[str]:
    """Keys of the records of a journal that cost time to make, whole lines only, in order."""
    path = run / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [f"{record['kind']} {record['key']}" for record in records if record["kind"] in _DEAR]


def broken_files(run: Path) -> list[str]:
    """Files under their final names that are not whole."""
    wrong = []
    for path in sorted(run.rglob("*")):
        if path.name.startswith(".") or any(part.startswith(".") for part in path.relative_to(run).parts):
            continue  # temporaries of the killed process; nobody reads them
        try:
            if path.suffix == ".onnx":
                onnx.checker.check_model(onnx.load(path), full_check=True)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in _ENDS and _ENDS[path.suffix] not in path.read_bytes()[-20:]:
                wrong.append(f"{path.name}: cut off")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is the finding
            wrong.append(f"{path.name}: {error}")
    return wrong


def front(run: Path) -> list[tuple[str, int, str]]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    by_name = {entry["name"]: entry for entry in report["candidates"]}
    return [(name, by_name[name]["bytes"], str(by_name[name]["metrics"]["sqnr"])) for name in report["front"]]


def models(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "front").glob("*.onnx"))}


def torture(
    model: Path,
    data: Path,
    folder: Path,
    kills: int,
    seed: int,
    strategy: str = "",
    *,
    workers: int = 0,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
) -> Outcome:
    """The whole experiment; see the module's docstring."""
    alone, tortured, temporary = folder / "alone", folder / "tortured", folder / "tmp"
    more = ("--strategy", strategy, *SPENDING, *OPTIONS.get(strategy, ())) if strategy else ()
    seconds = finish(command(model, data, alone, *more), temporary)
    more = (*more, "--workers", str(workers)) if workers else more
    rng, broken, lost = random.Random(seed), list[str](), list[str]()
    done = outlived = 0
    while done < kills:
        known = set(candidates(tortured))
        process = start(command(model, data, tortured, *more), temporary)
        # Starting up takes about a second in which nothing can break; most of the moments lie behind it.
        wait = rng.uniform(0.5, max(0.3 * seconds, 3.0))
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signals[done % len(signals)])
            done += 1
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            broken.append("the process did not end within 60 s of its signal")
            process.kill()
            process.communicate()
        outlived += orphans(process.pid)
        lost += sorted(known - set(candidates(tortured)))
        broken += broken_files(tortured) if tortured.exists() else []
        if process.returncode == 0:
            # It finished between two kills: what it measured counts, and the torture starts over beside it.
            if Counter(candidates(tortured)).most_common(1)[0][1] > 1 or front(tortured) != front(alone):
                break
            shutil.rmtree(tortured)
    finish(command(model, data, tortured, *more), temporary)
    keys = Counter(candidates(tortured))
    return Outcome(
        kills=done,
        seconds=seconds,
        measured=len(keys),
        twice=[key for key, times in keys.items() if times > 1],
        broken=broken + broken_files(tortured),
        lost=lost,
        orphans=outlived,
        left=[str(path) for place in (tortured, temporary) for path in sorted(place.rglob("*onnxq-*-*"))],
        front_equal=front(alone) == front(tortured) and sorted(keys) == sorted(set(candidates(alone))),
        models_equal=models(alone) == models(tortured),
    )


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--layers", type=int, default=16)
    arguments.add_argument("--samples", type=int, default=200)
    arguments.add_argument("--strategy", nargs="*", default=[""])
    arguments.add_argument("--workers", type=int, default=0)
    arguments.add_argument("--signals", nargs="*", default=["KILL"], choices=["KILL", "TERM", "HUP", "INT"])
    options = arguments.parse_args()
    good = [run(options, strategy) for strategy in options.strategy]
    raise SystemExit(0 if all(good) else 1)


def run(options: argparse.Namespace, strategy: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="onnxq-kill-") as name:
        folder = Path(name)
        model, data = make_inputs(folder, options.layers, options.samples)
        signals = [signal.Signals[f"SIG{name}"] for name in options.signals]
        result = torture(
            model,
            data,
            folder,
            options.kills,
            options.seed,
            strategy,
            workers=options.workers,
            signals=signals,
        )
    yes = {True: "yes", False: "NO"}
    row = {
        "strategy": strategy or "ranking",
        "workers": options.workers,
        "kills": f"{result.kills} by {', '.join(options.signals)}",
        "uninterrupted": f"{result.seconds:.1f} s",
        "records": result.measured,
        "measured twice": len(result.twice),
        "lost": len(result.lost),
        "orphans": result.orphans,
        "left behind": len(result.left),
        "front equal": yes[result.front_equal],
        "models byte-equal": yes[result.models_equal],
        "broken files": len(result.broken),
    }
    print(f"| {' | '.join(row)} |\n|{' --- |' * len(row)}\n| {' | '.join(map(str, row.values()))} |")
    for text in (*result.broken, *result.lost, *result.left):
        print(f"wrong: {text}")
    return result.good


if __name__ == "__main__":
    main()
