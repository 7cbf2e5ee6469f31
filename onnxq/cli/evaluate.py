"""`eval`: accuracy of one or more models on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.options import (
    config_option,
    data_options,
    hub_option,
    json_option,
    metric_option,
    models_argument,
    resolve_threads,
)

if TYPE_CHECKING:
    from onnxq.evaluation import Score

__all__ = ["evaluate"]


def _row(path: Path, score: Score, size: int) -> dict[str, Any]:
    return {
        "model": str(path),
        "bytes": size,
        "samples": score.samples,
        "metrics": score.values,
        "stderr": score.stderr,
    }


@click.command("eval")
@models_argument
@data_options(required=True, calibration=False)
@metric_option
@click.option(
    "--reference", metavar="FLOAT", help="The float model, for metrics that compare with its outputs."
)
@click.option(
    "--chunk", type=click.IntRange(min=0), default=0, help="Samples per run; default by their size."
)
@json_option
@config_option
@hub_option
def evaluate(
    models: tuple[str, ...],
    data: str,
    preprocess: str | None,
    limit: int,
    seed: int,
    threads: int,
    metric: str | None,
    reference: str | None,
    chunk: int,
    as_json: bool,
    hub: str | None,
) -> None:
    """Quality of one or more models: accuracy, agreement with float, error of the logits, or --metric.

    Unlabelled data need --reference. With several models and no --reference, the first one is the reference.
    """
    from onnxq.cli.datasets import checked_labels, open_for
    from onnxq.cli.terminal import megabytes, print_json, table
    from onnxq.evaluation import evaluate_file
    from onnxq.hub import resolve
    from onnxq.metrics import Metric, metrics_beside, open_metric
    from passes.core.errors import DataError
    from passes.graph.model import load, size_on_disk

    paths = [resolve(model, hub) for model in models]
    loaded = [load(path) for path in paths]
    against = load(resolve(reference, hub)) if reference else loaded[0] if len(loaded) > 1 else None
    rows, shown = [], dict[str, Metric]()
    for path, model in zip(paths, loaded, strict=True):
        dataset = open_for(model, data, preprocess, limit, seed)
        wanted = open_metric(metric or "", labelled=dataset.labelled)
        if wanted.needs_reference and against is None:
            why = "has no labels" if not metric else f"metric {wanted.name} compares with the float model"
            raise DataError(f"{dataset.name}: {why}, so give --reference FLOAT to compare with")
        metrics = metrics_beside(wanted, labelled=dataset.labelled, reference=against is not None)
        if any(each.class_labels for each in metrics):
            checked_labels(model, dataset)
        score = evaluate_file(
            model, dataset, against, metric=wanted, chunk=chunk, threads=resolve_threads(threads)
        )
        shown |= {each.name: each for each in metrics}
        rows.append(_row(path, score, size_on_disk(path)))
    if as_json:
        print_json({"data": data, "reference": against.name if against else None, "models": rows})
        return
    lines = []
    for row in rows:
        values, spreads = row["metrics"], row["stderr"]
        cells = [each.format_spread(values.get(name), spreads.get(name)) for name, each in shown.items()]
        lines.append([row["model"], *cells, str(row["samples"]), megabytes(row["bytes"])])
    table(["model", *shown, "samples", "size"], lines, right=range(1, len(shown) + 3))
