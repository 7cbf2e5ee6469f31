"""`fold`, `smooth` and `apply`: passes that need no search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.options import (
    calibration_option,
    config_option,
    damping_option,
    data_options,
    hub_option,
    json_option,
    output_option,
    resolve_threads,
    splitted,
)
from onnxq.cli.terminal import say

if TYPE_CHECKING:
    from onnxq.proof import Reference
    from passes import Context, Note, Pass, PassResult

__all__ = ["apply", "decode", "fold", "show_notes", "smooth"]


def show_notes(notes: Sequence[Note], explain: bool) -> None:
    """The passes' notes: all of them with --explain, else what they refused, counted."""
    from onnxq.cli.terminal import remark

    if explain:
        for note in notes:
            remark(f"  {note}")
        return
    for note in notes:
        if not note.node and note.kind in ("info", "skipped"):
            remark(f"  {note.reason}")
    refused = sum(note.kind == "refused" for note in notes)
    about = sum(note.kind == "info" and bool(note.node) for note in notes)
    counts = [f"{refused} rewrite(s) refused"] * bool(refused) + [f"{about} remark(s) on layers"] * bool(
        about
    )
    if counts:
        remark(f"  {', '.join(counts)}; --explain shows them")


def rewritten(reference: Reference, item: Pass, context: Context | None = None) -> PassResult:
    """Run passes on a model that ONNX Runtime knows all ops of, whose declared output shapes hold."""
    from onnxq.cli.terminal import warn
    from onnxq.evaluation import refuse_unknown_ops

    refuse_unknown_ops(reference.model)
    model, notes = reference.corrected()
    for note in notes:
        warn(note)
    return item(model, context)


def finish(
    result: PassResult,
    reference: Reference,
    source: str,
    target: Path,
    command: str,
    settings: dict[str, Any],
    *,
    explain: bool = False,
    as_json: bool = False,
) -> None:
    """Write the result and say what changed."""
    from onnxq.cli.output import stamped
    from onnxq.cli.terminal import megabytes, print_json, remark
    from onnxq.proof import write_model
    from passes.graph.model import size_on_disk

    before = size_on_disk(Path(source))
    written = write_model(stamped(result.model, command, settings), target, reference)
    size, proof = written.size, written.proof
    nodes = [len(model.proto.graph.node) for model in (reference.model, result.model)]
    if as_json:
        notes = [vars(note) for note in result.notes]
        document = {"output": str(target), "modified": result.modified, "bytes": size, "bytes_before": before}
        document |= {"nodes": nodes[1], "nodes_before": nodes[0], "notes": notes, "proof": proof.to_json()}
        print_json(document)
        return
    show_notes(result.notes, explain)
    if not result.modified:
        remark("  nothing to change; the output equals the input")
    say(f"{target}: {nodes[0]} -> {nodes[1]} nodes, {megabytes(before)} -> {megabytes(size)}")
    remark(f"  {proof.sentence()}")


_explain = click.option("--explain", is_flag=True, help="Print every note of the passes: what and why.")


@click.command()
@click.argument("model")
@output_option("MODEL.fold.onnx beside the input")
@_explain
@json_option
@hub_option
def fold(model: str, output: str | None, explain: bool, as_json: bool, hub: str | None) -> None:
    """Simplify MODEL (constants, shape arithmetic, pads, no-ops) and fold its BatchNormalizations."""
    from onnxq.cli.output import output_path
    from onnxq.hub import resolve
    from onnxq.proof import Reference
    from passes.core.recipe import parse_recipe
    from passes.graph.model import load

    path = str(resolve(model, hub))
    loaded = load(path)
    target = output_path(output, path, "fold")
    reference = Reference(loaded)
    result = rewritten(reference, parse_recipe("simplify | fold_batchnorm"))
    finish(result, reference, path, target, "fold", {}, explain=explain, as_json=as_json)


@click.command()
@click.argument("model")
@output_option("MODEL.decode.onnx beside the input")
@_explain
@json_option
def decode(model: str, output: str | None, explain: bool, as_json: bool) -> None:
    """Turn the weights of MODEL that stand as bit streams (GSE, int3, int5, int6, int7) back into float.

    The values are the same to the bit; the file needs none of onnxq's functions any more, and is as large as
    a float one.
    """
    from onnxq.cli.output import output_path
    from onnxq.proof import Reference
    from passes.decode import Decode
    from passes.graph.model import load

    target = output_path(output, model, "decode")
    reference = Reference(load(model))
    result = rewritten(reference, Decode())
    finish(result, reference, model, target, "decode", {}, explain=explain, as_json=as_json)


@click.command()
@click.argument("model")
@click.option(
    "--site",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="Put the scales back behind the convolution (output) or before it (input; depthwise only).",
)
@click.option(
    "--layers",
    metavar="SEL",
    multiple=True,
    default=("depthwise",),
    show_default=True,
    help="depthwise, all, or selectors (names, globs, op:Conv, re:..., first:2); repeatable.",
)
@click.option(
    "--absorb",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="Hide the scales in a neighbouring layer where that is exact.",
)
@click.option("--no-fold", is_flag=True, help="Do not simplify and fold first.")
@output_option("MODEL.smooth.onnx beside the input")
@_explain
@json_option
@config_option
@hub_option
def smooth(
    model: str,
    site: Any,
    layers: tuple[str, ...],
    absorb: Any,
    no_fold: bool,
    output: str | None,
    explain: bool,
    as_json: bool,
    hub: str | None,
) -> None:
    """Even out the weight ranges of convolution channels; the float function stays the same.

    With --layers all one scale a tensor loses least, but smoothed layers run in float. The pass
    `equalize` (onnxq apply) keeps integer kernels and loses more, in deep networks above all.
    """
    from onnxq.cli.output import output_path
    from onnxq.hub import resolve
    from onnxq.proof import Reference
    from passes.graph.model import load
    from passes.preparation import preparation
    from passes.smooth import Smooth

    path = str(resolve(model, hub))
    loaded = load(path)
    target = output_path(output, path, "smooth")
    last = Smooth(site=site, layers=splitted(layers), absorb=absorb)
    recipe: Pass = last if no_fold else preparation() | last
    reference = Reference(loaded)
    result = rewritten(reference, recipe)
    settings = {"site": site, "layers": layers, "absorb": absorb, "no_fold": no_fold}
    finish(result, reference, path, target, "smooth", settings, explain=explain, as_json=as_json)


@click.command()
@click.argument("recipe")
@click.argument("model")
@output_option("MODEL.out.onnx beside the input")
@data_options()
@calibration_option
@damping_option("auto")
@_explain
@json_option
@config_option
@hub_option
def apply(
    recipe: str,
    model: str,
    output: str | None,
    data: str | None,
    preprocess: str | None,
    limit: int,
    calibration_samples: int,
    calibration_data: str | None,
    seed: int,
    threads: int,
    calibration: str,
    damping: str,
    explain: bool,
    as_json: bool,
    hub: str | None,
) -> None:
    """Run RECIPE, a file or the text itself, on MODEL.

    \b
    onnxq apply 'simplify | fold_batchnorm | smooth{site=output}' model.onnx
    """
    from onnxq.cli.datasets import open_for, range_provider
    from onnxq.cli.output import output_path
    from onnxq.hub import resolve
    from onnxq.proof import Reference
    from onnxq.rounding import DataRounder, parse_damping
    from onnxq.training import BlockRounder
    from passes.core.base import Context
    from passes.core.recipe import format_pass, load_recipe
    from passes.graph.model import load
    from passes.placement.unquantizable import refuse_unchanged

    parsed = load_recipe(recipe)
    path = str(resolve(model, hub))
    loaded = load(path)
    target = output_path(output, path, "out")
    context = Context()
    spec = calibration_data or data
    settings: dict[str, Any] = {"recipe": format_pass(parsed)}
    reference = Reference(loaded)
    if spec is not None:
        samples = min(limit or calibration_samples, calibration_samples)
        dataset = open_for(loaded, spec, preprocess, samples, seed)
        context.ranges = range_provider(dataset, calibration, resolve_threads(threads))
        layers = DataRounder(
            dataset, damping=parse_damping(damping), seed=seed, threads=resolve_threads(threads)
        )
        context.rounder = BlockRounder(layers)
        reference = Reference(loaded, dataset)
        settings |= {"data": dataset.fingerprint(), "calibration": calibration, "damping": damping}
    result = rewritten(reference, parsed, context)
    if any(member.name == "quantize" for member in parsed):
        refuse_unchanged(loaded, result.model)
    finish(result, reference, path, target, "apply", settings, explain=explain, as_json=as_json)
