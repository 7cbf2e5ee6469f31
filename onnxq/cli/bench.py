"""`bench`: latency of one or more models, one run of each per turn."""

from __future__ import annotations

from typing import Any

import click

from onnxq.cli.options import (
    config_option,
    hub_option,
    json_option,
    models_argument,
    resolve_threads,
    threads_option,
)
from onnxq.cli.terminal import say

__all__ = ["bench"]


@click.command()
@models_argument
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Runs of each model.")
@click.option("--data", metavar="D", help="Take the input from here; default random numbers.")
@click.option("--preprocess", metavar="P", help="Of --data.")
@click.option("--device", "devices", multiple=True, metavar="D", help="Repeatable; see `onnxq devices`.")
@click.option("--profile", is_flag=True, help="With an ort: device, the slowest nodes too.")
@threads_option
@json_option
@config_option
@hub_option
def bench(
    models: tuple[str, ...],
    runs: int,
    data: str | None,
    preprocess: str | None,
    devices: tuple[str, ...],
    profile: bool,
    threads: int,
    as_json: bool,
    hub: str | None,
) -> None:
    """Median latency of one sample, quartiles, and the ratio to the first model.

    The models run in turns, so that all of them see the same load of the machine; compare ratios, not times.
    A --device is ort:cpu, ort:openvino, tvm:llvm, tvm://HOST:PORT?target=mali, ...; docs/DEVICES.md has
    them all.
    """
    from onnxq.cli.datasets import open_for
    from onnxq.cli.terminal import print_json, table
    from onnxq.data import fit_batch, input_specs
    from onnxq.evaluation import interleaved, load_session
    from onnxq.hub import resolve
    from onnxq.proof.feeds import made_up_feed
    from passes.core.errors import DataError, UserError
    from passes.graph.model import load

    paths = [resolve(model, hub) for model in models]
    loaded = [load(path) for path in paths]
    specs = input_specs(loaded[0].proto)
    wanted = {spec.name for spec in specs}
    for model in loaded[1:]:
        if {spec.name for spec in input_specs(model.proto)} != wanted:
            raise UserError(
                f"{model.name}: has other inputs than {loaded[0].name}, so one feed cannot serve both"
            )
    feed: dict[str, Any] | None
    if data is None:
        feed = made_up_feed(loaded[0])
    else:
        feed = next(open_for(loaded[0], data, preprocess, 0, 0).batches(fit_batch(1, specs))).inputs
    if feed is None:
        raise DataError(f"{loaded[0].name}: no input can be made up for it; give --data")
    used = resolve_threads(threads)
    if devices or profile:
        from onnxq.cli.bench_devices import bench_devices

        bench_devices(loaded, devices or ("ort:cpu",), feed, runs, used, as_json, profile)
        return
    sessions = [load_session(model, threads=used) for model in loaded]
    try:
        timings = interleaved(sessions, feed, runs=runs)
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(f"{loaded[0].name}: ONNX Runtime cannot run it on this input: {reason}") from None
    first = timings[0].median
    rows = [
        {
            "model": str(path),
            "median_ms": timing.median,
            "q1_ms": timing.quartiles[0],
            "q3_ms": timing.quartiles[1],
            "ratio": timing.median / first,
        }
        for path, timing in zip(paths, timings, strict=True)
    ]
    if as_json:
        print_json({"runs": runs, "threads": used, "input": "data" if data else "random", "models": rows})
        return
    cells = [
        (
            str(row["model"]),
            f"{row['median_ms']:.3f} ms",
            f"{row['q1_ms']:.3f} - {row['q3_ms']:.3f}",
            f"{row['ratio']:.3f}",
        )
        for row in rows
    ]
    table(["model", "median", "quartiles (ms)", "ratio"], cells, right=(1, 2, 3), title=None)
    say(
        f"{runs} runs in turns, {used} thread(s), {'first sample of the data' if data else 'random input'}",
        err=True,
    )
