"""Mutated models through the command line: exit code 0, or one sentence and 2; no crash, hang or file left.

Seeds are small models of every kind (fuzz_seeds.py). Each mutant has one to four mutations of its structure
(nodes, tensors, attributes, types, dimensions, opsets, names) or of its bytes (fuzz_mutations.py). It goes
through four commands in a forked worker; a worker that crashes or hangs is replaced and the mutant reported.

python benchmarks/fuzz_models.py [--count 20000] [--seed 0] [--jobs 2] [--only I] [--packed]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing as mp
import multiprocessing.connection
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import mutant
from fuzz_seeds import seeds

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 20
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
WEIGHTS = ["int8", "int4", "gse6", "tcq3", "int3", "uint8:asym", "int5:block32", "int16", "int2"]


def commands(number: int, packed: bool = False) -> list[list[str]]:
    weights = WEIGHTS[number % len(WEIGHTS)]
    last = (
        ["--activations", "dynamic"] if number % 2 else ["--random-calibration", "--calibration-samples", "2"]
    )
    threads = ["--threads", "1"]
    return [
        ["info", "m.onnx"],
        ["decode" if packed else "fold", "m.onnx", "-o", "out.onnx"],
        ["quantize", "m.onnx", "--weights", weights, "--activations", "float", *threads, "-o", "out.onnx"],
        ["quantize", "m.onnx", *last, *threads, "-o", "out.onnx"],
    ]


def _place(error: BaseException) -> str:
    """The exception under an 'unexpected' one, and the innermost line of ours that it passed."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if str(ROOT) in f.filename and "fuzz_models" not in f.filename]
    where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"
    text = re.sub(r"0x[0-9a-f]+|\d+", "#", str(error).splitlines()[0] if str(error) else "")[:80]
    return f"{type(error).__name__} at {where}: {text!r}"


def run_command(arguments: list[str]) -> tuple[int, str]:
    """(exit code, what went wrong) of one command in this process."""
    import click

    from onnxq.cli.app import cli

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(args=arguments, prog_name="onnxq", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code, ""
    except click.ClickException as error:
        text = error.format_message()
        problem = _place(error) if error.exit_code == 1 else ""
        if not problem and (CONTROL.search(text) or "\n" in text or not text.strip()):
            problem = f"control characters in the sentence {text[:80]!r}"
        return (1 if problem else error.exit_code), problem
    except Exception as error:  # noqa: BLE001 - what escapes the command line is looked for
        return 1, "escaped: " + _place(error)
    if CONTROL.search(out.getvalue() + err.getvalue()):
        return 1, "control characters in the output"
    return 0, ""


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def work(task: Any, answer: Any, options: argparse.Namespace, pool: list[bytes]) -> None:
    """A worker: takes numbers of mutants, gives what happened to each command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as name:
        folder = Path(name)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        (folder / "tmp").mkdir()
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        while True:
            number = task.recv()
            if number is None:
                return
            data, made = mutant(number, options.seed, pool)
            Path("m.onnx").write_bytes(data)
            Path("weights.bin").write_bytes(np.ones(200, np.float32).tobytes())
            usual = _files(folder)
            for arguments in commands(number, options.packed):
                answer.send(("begin", number, arguments, made))
                code, problem = run_command(arguments)
                left = _files(folder) - usual - ({"out.onnx"} if code == 0 else set())
                if left:
                    problem = problem or f"left behind: {min(left)}"
                answer.send(("end", code, problem, bool(left)))
                for file in _files(folder) - usual:
                    with contextlib.suppress(OSError):
                        (folder / file).unlink()
            answer.send(("done", number, None, made))


class Worker:
    """A forked process and the pipes to it."""

    def __init__(self, options: argparse.Namespace, pool: list[bytes]) -> None:
        context = mp.get_context("fork")
        self.task, theirs = context.Pipe()
        self.answer, mine = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(theirs, mine, options, pool), daemon=True)
        self.process.start()
        theirs.close()
        mine.close()
        self.now: Any = None
        self.since = time.monotonic()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first mutant.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="Replay one mutant in this process, with tracebacks.")
    parser.add_argument(
        "--packed", action="store_true", help="Only seeds with bit streams, and decode for fold."
    )
    parser.add_argument("--keep", help="Folder for the mutants that failed.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    pool = [model.SerializeToString() for model in seeds()]
    if options.packed:
        pool = [data for data in pool if b"DequantizeLinear" in data and b"ai.onnxq" in data]
    if options.only is not None:
        replay(options, pool)
        return
    outcome = campaign(options, pool)
    raise SystemExit(1 if outcome else 0)


def replay(options: argparse.Namespace, pool: list[bytes]) -> None:
    from onnxq.cli.app import cli

    number = options.only
    data, made = mutant(number, options.seed, pool)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        Path("m.onnx").write_bytes(data)
        Path("weights.bin").write_bytes(np.ones(200, np.float32).tobytes())
        print(f"mutant {number}: {made}, {len(data)} bytes")
        for arguments in commands(number, options.packed):
            print("$ onnxq", *arguments)
            try:
                cli.main(args=["--debug", *arguments], prog_name="onnxq")
            except SystemExit as ended:
                print("exit code", ended.code)
            except Exception:  # noqa: BLE001 - shown, which is the purpose
                traceback.print_exc()


def campaign(options: argparse.Namespace, pool: list[bytes]) -> int:
    """Run all mutants; prints the table and returns the number of failures."""
    for module in ("cli.quantize", "cli.rewrite", "cli.inspect", "evaluation", "rounding"):
        __import__(f"onnxq.{module}")
    numbers: Iterator[int] = iter(range(options.first, options.first + options.count))
    codes: Counter[tuple[str, int]] = Counter()
    problems: dict[str, list[int]] = defaultdict(list)
    left = 0
    start = time.perf_counter()
    workers = [Worker(options, pool) for _ in range(options.jobs)]

    def give(worker: Worker) -> bool:
        number = next(numbers, None)
        worker.task.send(number)
        worker.since = time.monotonic()
        return number is not None

    active = [worker for worker in workers if give(worker)]
    while active:
        ready = mp.connection.wait([w.answer for w in active], timeout=1)
        for worker in list(active):
            failed = ""
            if worker.answer in ready:
                try:
                    kind, a, b, c = worker.answer.recv()
                except EOFError:
                    worker.process.join()
                    failed = f"crashed with {worker.process.exitcode}"
                else:
                    if kind == "begin":
                        worker.now, worker.since = (a, b, c), time.monotonic()
                    elif kind == "end":
                        codes[worker.now[1][0], a] += 1
                        left += c
                        if a not in (0, 2) or b:
                            problems[b or f"exit code {a}"].append(worker.now[0])
                    elif not give(worker):
                        active.remove(worker)
                        worker.process.join()
            elif time.monotonic() - worker.since > LIMIT_S:
                failed = f"hung over {LIMIT_S} s"
            if failed:
                worker.kill()
                number, arguments, _ = worker.now
                problems[f"{failed}: {arguments[0]}"].append(number)
                codes[arguments[0], -1] += 1
                fresh = Worker(options, pool)
                active[active.index(worker)] = fresh
                if not give(fresh):
                    active.remove(fresh)
    seconds = time.perf_counter() - start
    speed = f"{seconds:.0f} s ({options.count / seconds:.0f} a second)"
    print(f"{options.count} mutants x 4 commands in {speed}, seed {options.seed}")
    for name in ("info", "fold", "decode", "quantize"):
        print(f"  {name:<9}", {code: count for (key, code), count in sorted(codes.items()) if key == name})
    failures = sum(map(len, problems.values()))
    print(f"  {left} commands left files behind; {failures} failures of {len(problems)} kinds")
    for text, found in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(f"  {len(found):>5}  {text}   (mutants {', '.join(map(str, found[:4]))})")
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
        for found in problems.values():
            Path(options.keep, f"{found[0]}.onnx").write_bytes(mutant(found[0], options.seed, pool)[0])
    return sum(map(len, problems.values()))


if __name__ == "__main__":
    main()
