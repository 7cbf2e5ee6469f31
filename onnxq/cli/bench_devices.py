"""`bench --device`: one table of models by devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from onnxq.cli.terminal import print_json, say, table, warn
from onnxq.runners import open_runner
from onnxq.runners.agreement import reference_outputs, refuse_disagreement
from onnxq.runners.base import Feed, Profiler, Program, Runner
from onnxq.runners.timing import in_turns
from passes.core.errors import UserError
from passes.graph.model import Model

__all__ = ["bench_devices"]

_WARMUP = 3
_NODES = 12


def bench_devices(
    models: Sequence[Model],
    devices: Sequence[str],
    feed: Feed,
    runs: int,
    threads: int,
    as_json: bool,
    profile: bool,
) -> None:
    """Time every model on every device and print one table. Exit code 2 when a device fails for a model."""
    expected = [reference_outputs(model, [feed]) for model in models]
    rows: list[dict[str, Any]] = []
    profiles: list[dict[str, Any]] = []
    for device in devices:
        runner = open_runner(device, threads)
        try:
            found, notes = _on_device(runner, models, expected, feed, runs)
            for note in notes:
                warn(note)
            rows.extend(found)
            if profile and isinstance(runner, Profiler):
                profiles.extend(_profiled(runner, models, feed))
        finally:
            runner.close()
    if as_json:
        document = {"runs": runs, "threads": threads, "rows": rows}
        print_json({**document, "profiles": profiles} if profile else document)
    else:
        _print(rows, profiles, runs)
    if any(row["problem"] for row in rows):
        raise click.exceptions.Exit(2)


def _on_device(
    runner: Runner, models: Sequence[Model], expected: Sequence[Any], feed: Feed, runs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per model, and what the device has to say about them."""
    programs: dict[int, Program] = {}
    problems: dict[int, str] = {}
    notes: list[str] = []
    for index, model in enumerate(models):
        try:
            program = runner.prepare(model)
            refuse_disagreement(runner, program, model, [feed], expected[index])
            programs[index] = program
            notes.extend(note for note in program.notes if note not in notes)
        except UserError as error:  # noqa: PERF203 - one model's failure leaves the others
            problems[index] = str(error)
    medians: dict[int, Any] = {}
    try:
        held = list(programs.values())
        for program in held:
            program.time(feed, _WARMUP)
        medians = dict(zip(programs, in_turns(held, [feed] * len(held), runs), strict=True))
    except UserError as error:
        problems.update(dict.fromkeys(programs, str(error)))
    rows = [_row(runner.name, model, medians.get(i), problems.get(i)) for i, model in enumerate(models)]
    first = next((row["median_ms"] for row in rows if row["median_ms"]), None)
    for row in rows:
        row["ratio"] = row["median_ms"] / first if row["median_ms"] and first else None
    return rows, notes


def _row(device: str, model: Model, times: Any, problem: str | None) -> dict[str, Any]:
    low, high = (None, None) if times is None else times.quartiles
    return {
        "device": device,
        "model": model.name,
        "median_ms": None if times is None else times.median,
        "q1_ms": low,
        "q3_ms": high,
        "ratio": None,
        "problem": problem,
    }


def _profiled(runner: Profiler, models: Sequence[Model], feed: Feed) -> list[dict[str, Any]]:
    found = []
    for model in models:
        placement = runner.profile(model, runs=5, feed=feed)
        nodes = sorted(placement.times, key=lambda time: -time.milliseconds)
        found.append(
            {
                "device": runner.name,
                "model": model.name,
                "kernels": dict(placement.counts()),
                "unfused_qdq": [time.node for time in placement.unfused],
                "nodes": [vars(time) for time in nodes],
            }
        )
    return found


def _print(rows: Sequence[Mapping[str, Any]], profiles: Sequence[Mapping[str, Any]], runs: int) -> None:
    cells = [
        (row["device"], row["model"], "-", "-", "-")
        if row["median_ms"] is None
        else (
            row["device"],
            row["model"],
            f"{row['median_ms']:.3f} ms",
            f"{row['q1_ms']:.3f} - {row['q3_ms']:.3f}",
            f"{row['ratio']:.3f}",
        )
        for row in rows
    ]
    table(["device", "model", "median", "quartiles (ms)", "ratio"], cells, right=(2, 3, 4))
    for row in rows:
        if row["problem"]:
            warn(f"{row['model']}: {row['problem']}")
    for entry in profiles:
        shown = [
            (
                node["node"],
                node["op"],
                node["provider"].removesuffix("ExecutionProvider"),
                f"{node['milliseconds']:.3f}",
            )
            for node in entry["nodes"][:_NODES]
        ]
        alone = len(entry["unfused_qdq"])
        say()
        say(f"{entry['model']} on {entry['device']}: {alone} Q/DQ kernel(s) run by themselves")
        table(["node", "kernel", "provider", "ms"], shown, right=(3,))
    say(f"{runs} runs in turns on each device; ratio to the first model on that device", err=True)
