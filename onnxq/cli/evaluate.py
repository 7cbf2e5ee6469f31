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
@click.option("--reference", metavar="FLOAT", help="Model that agreement, MSE and SQNR are against.")
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
    reference: str | None,
    chunk: int,
    as_json: bool,
    hub: str | None,
) -> None:
    """Top-1, top-5, agreement with float and SQNR of one or more models.

    Unlabelled data need --reference. With several models and no --reference, the first one is the reference.
    """
    from onnxq.cli.datasets import checked_labels, open_for
    from onnxq.cli.terminal import megabytes, print_json, table
    from onnxq.evaluation import evaluate_file
    from onnxq.hub import resolve
    from onnxq.search import format_metric
    from passes.errors import DataError
    from passes.model import load, size_on_disk

    paths = [resolve(model, hub) for model in models]
    loaded = [load(path) for path in paths]
    against = load(resolve(reference, hub)) if reference else loaded[0] if len(loaded) > 1 else None
    rows = []
    for path, model in zip(paths, loaded, strict=True):
        dataset = open_for(model, data, preprocess, limit, seed)
        if not dataset.labelled and against is None:
            raise DataError(f"{dataset.name}: has no labels, so give --reference FLOAT to compare with")
        checked_labels(model, dataset)
        score = evaluate_file(model, dataset, against, chunk=chunk, threads=resolve_threads(threads))
        rows.append(_row(path, score, size_on_disk(path)))
    if as_json:
        print_json({"data": data, "reference": against.name if against else None, "models": rows})
        return
    names = [
        name for name in ("top1", "top5", "agreement", "sqnr") if any(name in row["metrics"] for row in rows)
    ]
    lines = []
    for row in rows:
        cells = []
        for name in names:
            text = format_metric(name, row["metrics"].get(name), digits=2)
            spread = row["stderr"].get(name)
            cells.append(
                f"{text.removesuffix(' %')} ± {100 * spread:.2f} %"
                if name == "top1" and spread is not None
                else text
            )
        lines.append([row["model"], *cells, str(row["samples"]), megabytes(row["bytes"])])
    table(["model", *names, "samples", "size"], lines, right=range(1, len(names) + 3))
