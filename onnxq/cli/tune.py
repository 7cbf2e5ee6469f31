"""`tune`: the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.declared import declared_options
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
)
from onnxq.cli.strategies import read_by, strategy_options
from onnxq.cli.tuning import config_of
from onnxq.tuning import TuneConfig

if TYPE_CHECKING:
    from onnxq.metrics import Reading
    from onnxq.tuning import TuneResult

__all__ = ["tune"]

GOAL_NOT_MET = 3
TIME_IS_UP = 4


def _config(model: str, settings: Mapping[str, Any]) -> TuneConfig:
    """The configuration, checked as far as that needs no model and no data."""
    from onnxq.metrics import open_metric

    config = config_of(model, settings)
    config.validate()
    open_metric(config.metric).check_goal(config.metric_floor)
    return config


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
@strategy_options
@click.option("--budget", type=ByteSize(), default=0.0, help="One policy of this size, as in 2.4MB.")
@declared_options(TuneConfig, "bops_budget")
@click.option(
    "--costs", multiple=True, metavar="FILE", help="Costs of layers: a latency model, say (docs/COSTS.md)."
)
@click.option("--cost-limit", "limits", multiple=True, help="Most of a cost, as in latency=3.5.")
@declared_options(TuneConfig, "front", "precision", readers=read_by)
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
@declared_options(TuneConfig, "activations", flags={"modes": "--mode"})
@calibration_option
@declared_options(TuneConfig, "rounding")
@damping_option("1.0")
@smooth_options("auto")
@click.option("--exclude", metavar="SEL", multiple=True, help="Layers that stay float in every candidate.")
@metric_option
@declared_options(TuneConfig, "metric_floor", "objectives", "latency_runs", "latency_every")
@declared_options(TuneConfig, "ranking_samples", readers=read_by)
@declared_options(TuneConfig, "chunk", "cache_mb")
@click.option(
    "--racing/--no-racing", default=True, show_default=True, help="Give hopeless candidates up early."
)
@declared_options(TuneConfig, "workers", "scheduler", "random_calibration")
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

    The strategy ranking orders layers by their errors and moves from fully quantized to float. The others
    spend bits layer by layer, by how sensitive each is on the calibration samples.
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
