"""`sensitivity`: which layers lose most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.options import (
    calibration_option,
    config_option,
    data_options,
    hub_option,
    json_option,
    resolve_threads,
    splitted,
)

if TYPE_CHECKING:
    from onnxq.search.layer_errors import LayerErrors

__all__ = ["sensitivity"]


def _plot(path: Path, model: str, errors: list[LayerErrors]) -> None:
    from onnxq.files import atomic_write
    from onnxq.report.drawing import png
    from onnxq.report.plots import errors_figure

    layers = [
        {"name": e.layer, "op_type": e.op, "qdq_error": e.qdq, "xmodel_error": e.xmodel, "score": e.score}
        for e in errors
    ]
    atomic_write(path, png(errors_figure({"model": model, "layers": layers})))


@click.command()
@click.argument("model")
@data_options(required=True)
@click.option("--weights", default="int8:channel", show_default=True, help="Scheme that is judged.")
@click.option("--activations", default="uint8", show_default=True, help="uint8, int8, dynamic or float.")
@calibration_option
@click.option(
    "--ranking-samples",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Samples measured on.",
)
@click.option("--top", type=click.IntRange(min=1), help="Show only the worst so many layers.")
@click.option("-o", "--output", metavar="OUT", help="OUT.png draws; with --schemes a folder for `allocate`.")
@click.option(
    "--schemes",
    multiple=True,
    help="Measure the logits with one layer at a time in each of these, as in gse2,int8:channel; activations"
    " alone as float/uint4, both as gse4/uint8.",
)
@click.option(
    "--with-activations",
    multiple=True,
    help="--schemes: pair each with each of these, as in uint4,uint8, both measured alone and added up.",
)
@click.option(
    "--precision",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="--schemes: relative standard error to measure to; 0 takes every sample.",
)
@click.option(
    "--cache-mb", type=click.IntRange(min=1), default=512, show_default=True, help="Memory for activations."
)
@json_option
@config_option
@hub_option
def sensitivity(
    model: str,
    data: str,
    preprocess: str | None,
    limit: int,
    calibration_samples: int,
    calibration_data: str | None,
    seed: int,
    threads: int,
    weights: str,
    activations: str,
    calibration: str,
    ranking_samples: int,
    top: int | None,
    output: str | None,
    schemes: tuple[str, ...],
    with_activations: tuple[str, ...],
    precision: float,
    cache_mb: int,
    as_json: bool,
    hub: str | None,
) -> None:
    """Rank the layers of MODEL by what quantizing them costs, worst first.

    QDQ error: what quantizing moves a layer's own tensor by. XModel error: how far its output in the wholly
    quantized network is from float, errors of the layers before it included. Both relative (L2).
    Score: half of each, normalised over the layers. With --schemes instead: the mean squared error of the
    logits with one layer alone in a scheme, for every layer and scheme (weights, activations or both).
    """
    from onnxq.cli.datasets import open_for, range_provider
    from onnxq.cli.output import check_output
    from onnxq.cli.quantize import activation_text, weight_text
    from onnxq.cli.rewrite import rewritten
    from onnxq.cli.terminal import print_json, remark, table
    from onnxq.hub import resolve
    from onnxq.proof import Reference
    from onnxq.search.layer_errors import measure_layer_errors
    from onnxq.search.ranking import rank
    from passes.core.base import Context
    from passes.core.errors import UnsupportedModelError
    from passes.graph.layers import find_layers
    from passes.graph.model import load
    from passes.opset import upgrade
    from passes.policy import Policy
    from passes.preparation import preparation
    from passes.quantize import Quantize, activation_scheme, required_policy_opset, weight_scheme

    path = str(resolve(model, hub))
    if output:
        check_output(Path(output), Path(path))
    if schemes:
        from onnxq.cli.scheme_table import show_schemes
        from onnxq.sensitivity import Settings

        model_file = load(path)
        samples = min(limit or calibration_samples, calibration_samples)
        dataset = open_for(model_file, calibration_data or data, preprocess, samples, seed)
        settings = Settings(precision, resolve_threads(threads), cache_mb * 2**20, seed)
        names, kinds = splitted(schemes), splitted(with_activations)
        show_schemes(model_file, dataset, names, settings, output, top, as_json, kinds, calibration)
        return
    weight, activation = (
        weight_scheme(weight_text(weights, None)),
        activation_scheme(activation_text(activations)),
    )
    reference = Reference(load(path))
    prepared = rewritten(reference, preparation()).model
    reference.check(prepared)
    layers = find_layers(prepared)
    if not layers:
        raise UnsupportedModelError(f"{path}: has no quantizable layer")
    policy = Policy.uniform(layers, weight, activation)
    prepared = upgrade(prepared, required_policy_opset(policy), "the policy", Context())
    samples = min(limit or calibration_samples, calibration_samples)
    dataset = open_for(prepared, calibration_data or data, preprocess, samples, seed)
    context = Context(ranges=range_provider(dataset, calibration, resolve_threads(threads)))
    quantized = Quantize.of(policy)(prepared, context).model
    subset = dataset.subset(range(min(ranking_samples, len(dataset))))
    errors = measure_layer_errors(prepared, quantized, policy, subset)
    by_name = {entry.layer: entry for entry in errors}
    order = [by_name[name] for name in rank(errors)][:top]
    if output:
        _plot(Path(output), Path(path).name, errors)
    if as_json:
        document: dict[str, Any] = {"model": path, "weights": str(weight), "activations": str(activation)}
        print_json({**document, "samples": len(subset), "layers": [vars(entry) for entry in order]})
        return
    rows = [
        (str(position), e.layer, e.op, f"{e.qdq:.4f}", f"{e.xmodel:.4f}", f"{e.score:.3f}")
        for position, e in enumerate(order, start=1)
    ]
    table(["#", "layer", "op", "QDQ error", "XModel error", "score"], rows, right=(0, 3, 4, 5))
    remark(f"{len(errors)} layers, {weight} weights and {activation} activations, {len(subset)} samples")
    if output:
        remark(f"drawn in {output}")
