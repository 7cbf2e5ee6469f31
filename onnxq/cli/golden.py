"""`golden check` and `golden update`: pin what a recipe makes of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxq.cli.options import data_options, resolve_threads
from onnxq.cli.terminal import say

if TYPE_CHECKING:
    from passes import Context, Model, Sequential

__all__ = ["golden"]


@click.group()
def golden() -> None:
    """Pin what a recipe makes of a model, as readable text that a diff can show."""


def _open(
    recipe: str, model: str, data: str | None, preprocess: str | None, samples: int, seed: int, threads: int
) -> tuple[Sequential, Model, Context]:
    from onnxq.cli.datasets import open_for, range_provider
    from passes.core.base import Context
    from passes.core.recipe import load_recipe
    from passes.graph.model import load

    parsed, loaded, context = load_recipe(recipe), load(model), Context()
    if data is not None:
        dataset = open_for(loaded, data, preprocess, samples, seed)
        context.ranges = range_provider(dataset, "percentile:99.99", resolve_threads(threads))
    return parsed, loaded, context


@golden.command()
@click.argument("recipe")
@click.argument("model")
@click.argument("file")
@data_options(calibration=False)
def check(
    recipe: str,
    model: str,
    file: str,
    data: str | None,
    preprocess: str | None,
    limit: int,
    seed: int,
    threads: int,
) -> None:
    """Compare what RECIPE makes of MODEL with the text in FILE; exit code 1 and the difference if not so."""
    from passes.core.errors import UserError
    from passes.golden.text import GoldenMismatch, check_golden

    parsed, loaded, context = _open(recipe, model, data, preprocess, limit or 100, seed, threads)
    if not Path(file).is_file():
        raise UserError(f"{file}: no such golden file; write it with 'onnxq golden update'")
    try:
        check_golden(parsed, loaded, file, context=context)
    except GoldenMismatch as error:
        for line in str(error).split("\n"):
            say(line)
        raise click.exceptions.Exit(1) from None
    say(f"{file}: as expected")


@golden.command()
@click.argument("recipe")
@click.argument("model")
@click.argument("file")
@data_options(calibration=False)
def update(
    recipe: str,
    model: str,
    file: str,
    data: str | None,
    preprocess: str | None,
    limit: int,
    seed: int,
    threads: int,
) -> None:
    """Write what RECIPE makes of MODEL into FILE."""
    from onnxq.cli.output import check_output
    from onnxq.files import output_errors
    from passes.golden.text import check_golden

    check_output(Path(file), Path(model))
    parsed, loaded, context = _open(recipe, model, data, preprocess, limit or 100, seed, threads)
    before = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else None
    with output_errors(file):
        check_golden(parsed, loaded, file, update=True, context=context)
    same = before == Path(file).read_text(encoding="utf-8")
    say(f"{file}: {'unchanged' if same else 'written' if before is None else 'updated'}")
