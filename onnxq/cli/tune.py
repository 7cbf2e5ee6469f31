"""`tune`: the search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.options import (
    ByteSize,
    Duration,
    calibration_option,
    config_option,
    damping_option,
    data_options,
    hub_option,
    json_option,
    metric_option,
    models_argument,
    smooth_options,
    splitted,
)
from onnxq.cli.unread import refuse_unread

if TYPE_CHECKING:
    from onnxq.metrics import Reading
    from onnxq.tuning import TuneConfig, TuneResult

__all__ = ["tune"]

GOAL_NOT_MET = 3
TIME_IS_UP = 4


def _config(model: str, settings: dict[str, Any]) -> TuneConfig:
    """The options as the configuration of one model's run."""
    from onnxq.metrics import open_metric
    from onnxq.tuning import TuneConfig

    values = dict(settings)
    values["modes"] = splitted(values["modes"])
    values["weights"] = splitted(values["weights"])
    values["limits"] = splitted(values["limits"])
    for key in ("preprocess", "calibration_data", "metric"):
        values[key] = values[key] or ""
    config = TuneConfig(model=model, **values)
    config.validate()
    open_metric(config.metric).check_goal(config.metric_floor)
    return config


def _refuse_unread(config: TuneConfig) -> None:
    """Raises UserError for typed options that the modes, the rounding or the objectives leave unread."""
    static = "static" in config.modes
    refuse_unread(
        {
            "activations": (static, "with --mode static"),
            "calibration": (static, "with --mode static"),
            "damping": (config.rounding in ("gptq", "adaround"), "with --rounding gptq or adaround"),
            "smooth_layers": (config.smooth in ("output", "input"), "with --smooth output or input"),
            "latency_every": ("latency@" in config.objectives, "with --objectives latency@DEVICE"),
            "scheduler": (not config.workers, "without --workers, which evaluates on this machine"),
        }
    )


def _folders(models: tuple[str, ...], output: str | None) -> list[Path]:
    """The run folder of each model: RUN itself for one, RUN/NAME for several."""
    from passes.core.errors import UserError

    stems = [Path(model.removeprefix("hub:").partition("@")[0]).stem for model in models]
    if len(models) == 1:
        return [
            Path(output) if output else Path(models[0].removeprefix("hub:")).with_name(f"{stems[0]}.tune")
        ]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(
            f"two of the models are called '{twice}', so their run folders would be the same; rename one"
        )
    return [Path(output or "runs") / stem for stem in stems]


def _exit_code(results: list[TuneResult]) -> int:
    if any(not result.finished for result in results):
        return TIME_IS_UP
    return GOAL_NOT_MET if any(result.goal_met is False for result in results) else 0


def _document(result: TuneResult) -> dict[str, Any]:
    return {
        "run": str(result.folder),
        "finished": result.finished,
        "goal_met": result.goal_met,
        "metric": result.metric,
        "candidates": len(result.candidates),
        "resumed": result.resumed,
        "summary": result.summary,
        "float": result.baseline.to_json(),
        "front": [member.to_json() for member in result.front],
        "picks": [pick.to_json() for pick in result.picks.values()],
    }


@click.command(
    epilog="Exit codes: 0 done; 2 bad input; 3 done, but no candidate reaches --metric-floor; 4 the time "
    "budget ended first or a device failed (the report is valid, and the same command "
    "goes on); 130 interrupted."
)
@models_argument
@data_options(required=True)
@click.option(
    "--pareto", is_flag=True, help="Search the Pareto front: the default, and so far the only goal."
)
@click.option(
    "-o", "--output", metavar="RUN", help="Run folder; default MODEL.tune. Several models: RUN/NAME each."
)
@click.option("--fresh", is_flag=True, help="Start over in a folder that holds another or an older run.")
@click.option(
    "--time-budget",
    type=Duration(),
    default=0.0,
    metavar="TIME",
    help="Stop after 90s, 20m, 1h30m; go on later.",
)
@click.option(
    "--strategy",
    default="",
    help="ranking, threshold, ilp, shapley, nsga2, auto; default auto from three bit widths on, or a limit.",
)
@click.option("--tau", type=float, default=0.0, help="threshold: the one tau; default sweeps over it.")
@click.option("--budget", type=ByteSize(), default=0.0, help="One policy of this size, as in 2.4MB.")
@click.option("--bops-budget", type=float, default=0.0, help="Most bit operations of a sample, as in 6e9.")
@click.option(
    "--costs", multiple=True, metavar="FILE", help="Costs of layers: a latency model, say (docs/COSTS.md)."
)
@click.option("--cost-limit", "limits", multiple=True, help="Most of a cost, as in latency=3.5.")
@click.option("--front", type=int, default=12, show_default=True, help="Points that a strategy proposes.")
@click.option(
    "--precision",
    type=float,
    default=0.2,
    show_default=True,
    help="Relative standard error that a sensitivity is measured to; 0 takes every sample.",
)
@click.option("--permutations", type=int, default=10, show_default=True, help="Of shapley.")
@click.option("--generations", type=int, default=10, show_default=True, help="Of nsga2.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    default=("static", "dynamic"),
    show_default=True,
    help="static, dynamic, weights (activations stay float); by commas or repeated.",
)
@click.option(
    "--weights",
    multiple=True,
    default=("int8:channel",),
    show_default=True,
    help="Weight schemes from cheapest to finest, as in int4:channel,int8:channel; float is always the end.",
)
@click.option(
    "--activations",
    default="uint8",
    show_default=True,
    help="Scheme of static activations; several, as in uint8,uint4, are searched together with the weights.",
)
@calibration_option
@click.option(
    "--rounding",
    default="nearest",
    show_default=True,
    help="Of the candidates' weights: nearest, bias, gptq, which looks at the calibration set (slower to"
    " build, far better below 6 bits), or adaround, which learns on top of it (slower still).",
)
@damping_option("1.0")
@smooth_options("auto")
@click.option("--exclude", metavar="SEL", multiple=True, help="Layers that stay float in every candidate.")
@metric_option
@click.option(
    "--metric-floor",
    type=float,
    default=0.0,
    help="Goal in the metric's own unit, as in 0.75 for 75 %: exit code 3 when nothing reaches it.",
)
@click.option(
    "--objectives",
    default="metric,bytes,latency",
    show_default=True,
    help="Of metric, bytes, latency, latency@DEVICE (repeatable, see `onnxq devices`), bops.",
)
@click.option(
    "--latency-runs", type=click.IntRange(min=1), default=20, show_default=True, help="Runs per timing."
)
@click.option(
    "--latency-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="On devices time one candidate in so many, predict the others, and time the front.",
)
@click.option(
    "--ranking-samples",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="For the layer errors.",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=0),
    default=0,
    help="Samples per evaluation run; default by their size.",
)
@click.option(
    "--cache-mb", type=click.IntRange(min=0), default=1024, show_default=True, help="Memory for activations."
)
@click.option(
    "--racing/--no-racing", default=True, show_default=True, help="Give hopeless candidates up early."
)
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Evaluate candidates in so many processes."
)
@click.option(
    "--scheduler", default="", metavar="URL", help="Evaluate on the Dask cluster of tcp://HOST:PORT."
)
@click.option("--random-calibration", is_flag=True, help="Calibrate on random numbers; the report says so.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and write nothing.")
@json_option
@config_option
@hub_option
def tune(
    models: tuple[str, ...],
    output: str | None,
    fresh: bool,
    pareto: bool,  # noqa: ARG001 - there is no other goal yet
    dry_run: bool,
    as_json: bool,
    hub: str | None,
    threads: int,
    **settings: Any,
) -> None:
    """Search the Pareto front of quality, size and latency over the ways to quantize MODEL.

    ranking: layers by their errors; from fully quantized to float, one more layer stays float per step. The
    others spend bits layer by layer, by how sensitive each is on the calibration samples.
    Every finished candidate is on the disk at once: the same command on the same RUN goes on where it was
    stopped.
    """
    from onnxq.cli.output import check_output
    from onnxq.cli.plan import show_plan
    from onnxq.cli.progress import Progress
    from onnxq.cli.show import print_report
    from onnxq.cli.terminal import print_json, remark
    from onnxq.hub import resolve
    from onnxq.machine import default_threads
    from onnxq.report import load_report
    from onnxq.report.readings import main_reading
    from onnxq.tuning import tune as run_tune

    ctx = click.get_current_context()
    folders = _folders(models, output)
    for folder in folders:
        check_output(folder / "report.json")
    paths = [str(resolve(model, hub)) for model in models]
    settings["threads"] = threads or default_threads()
    configs = [_config(path, settings) for path in paths]
    _refuse_unread(configs[0])
    if dry_run:
        show_plan(configs, folders, as_json)
        return
    results = []
    for config, folder in zip(configs, folders, strict=True):
        ctx.find_root().meta["onnxq.resume"] = (
            f"What is finished is safe in {folder}; start the same command again to go on."
        )
        if len(folders) > 1:
            remark(f"{config.model} -> {folder}")
        with Progress() as progress:
            result = run_tune(config, folder, fresh=fresh, on_event=progress)
        results.append(result)
        if not as_json:
            document = load_report(folder)
            print_report(document, folder)
            _closing(result, config, main_reading(document))
    if as_json:
        documents = [_document(result) for result in results]
        print_json(documents[0] if len(documents) == 1 else {"runs": documents})
    ctx.exit(_exit_code(results))


def _closing(result: TuneResult, config: TuneConfig, metric: Reading) -> None:
    from onnxq.cli.terminal import remark

    if result.resumed:
        remark(
            f"{result.resumed} of {len(result.candidates)} candidates were measured before and taken over."
        )
    if not result.finished:
        remark("The time budget ended or a device failed before all was measured; the same command goes on.")
    if result.goal_met is False:
        floor = metric.format(config.metric_floor)
        remark(f"No candidate of the front reaches the floor of {floor}.")
