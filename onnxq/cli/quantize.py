"""`quantize`: one quantized model."""

from __future__ import annotations

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
    smooth_options,
)
from onnxq.cli.terminal import say

if TYPE_CHECKING:
    from onnxq.cli.progress import RoundingProgress
    from onnxq.data import Dataset
    from onnxq.proof.saving import Written
    from passes import Model, PassResult, Sequential

__all__ = ["activation_text", "quantize", "weight_text"]


def weight_text(weights: str, granularity: str | None) -> str:
    """`int8` and `channel` as one scheme. Raises UserError when both name a granularity, or for no scheme."""
    from passes.core.errors import UserError
    from passes.policy import Scheme

    scheme = Scheme.parse(weights)  # a message about it shows what was typed
    named = [
        part for part in weights.split(":")[1:] if part in ("tensor", "channel") or part.startswith("block")
    ]
    if granularity is None:
        plain = named or not scheme.is_integer
        return weights if plain else f"{weights}:channel"
    if named and named[0] != granularity:
        raise UserError(
            f"--weights {weights} and --granularity {granularity} contradict each other; give one"
        )
    return weights if named else f"{weights}:{granularity}"


def activation_text(activations: str) -> str:
    return "uint8:dynamic" if activations == "dynamic" else activations


def _recipe(settings: dict[str, Any]) -> Sequential:
    from passes.core.base import Sequential
    from passes.preparation import preparation
    from passes.quantize import Quantize, activation_scheme, weight_scheme
    from passes.smooth import Smooth

    members: list[Any] = [] if settings["no_fold"] else [*preparation()]
    if settings["smooth"] != "none":
        members.append(Smooth(site=settings["smooth"], layers=tuple(settings["smooth_layers"].split(","))))
    options: dict[str, Any] = {key: settings[key] for key in ("standard", "rounding")}
    options["exclude"] = tuple(settings["exclude"])
    if settings["policy"]:
        members.append(Quantize(policy=settings["policy"], **options))
    else:
        weights = weight_text(settings["weights"], settings["granularity"])
        activations = activation_text(settings["activations"])
        weight_scheme(weights)
        activation_scheme(activations)
        members.append(Quantize(weights=weights, activations=activations, **options))
    return Sequential(tuple(members))


def _needs_data(settings: dict[str, Any]) -> bool:
    from passes.policy import load_policy
    from passes.quantize import activation_scheme

    if settings["policy"]:
        policy = load_policy(settings["policy"])
        schemes = [policy[name].activations for name in policy]
    else:
        schemes = [activation_scheme(activation_text(settings["activations"]))]
    return any(scheme.is_static for scheme in schemes)


def _lent(
    model: Model, settings: dict[str, Any], threads: int, told: RoundingProgress
) -> tuple[dict[str, Any], Dataset | None, dict[str, str]]:
    """What the context lends to the passes, the user's data, and what to remember about them."""
    from onnxq.cli.datasets import open_for, range_provider
    from onnxq.cli.terminal import warn
    from onnxq.data import input_specs, random_dataset
    from onnxq.proof.growth import outgrows
    from passes.core.errors import UserError

    samples, seed = settings["calibration_samples"], settings["seed"]
    spec = settings["calibration_data"] or settings["data"]
    if settings["random_calibration"]:
        dataset: Any = random_dataset(input_specs(model.proto), samples, seed)
        if outgrows(model, next(dataset.batches(1)).inputs):
            raise UserError(
                f"{model.name}: one of its tensors is too large to calibrate on random numbers; correct the "
                "sizes that the model declares, or give --data"
            )
        warn("calibrated on random numbers; the accuracy of this model means nothing")
    elif spec is not None:
        limit = min(settings["limit"] or samples, samples)
        dataset = open_for(model, spec, settings["preprocess"], limit, seed)
    elif settings["rounding"] not in ("nearest", "analytic"):
        raise UserError(
            f"{model.name}: --rounding {settings['rounding']} looks at calibration data; give --data, or "
            "--rounding nearest"
        )
    elif _needs_data(settings):
        raise UserError(
            f"{model.name}: static activations need calibration data; give --data, or --activations dynamic "
            "or float (or, to try things out, --random-calibration)"
        )
    else:
        return {}, None, {}
    lent: dict[str, Any] = {"ranges": range_provider(dataset, settings["calibration"], threads)}
    if settings["rounding"] not in ("nearest", "analytic"):
        from onnxq.rounding import DataRounder, parse_damping
        from onnxq.training import BlockRounder

        damping = parse_damping(settings["damping"])
        layers = DataRounder(
            dataset, damping=damping, seed=settings["seed"], threads=threads, progress=told.layers
        )
        lent["rounder"] = BlockRounder(layers, settings["brecq_steps"], told.blocks)
    real = None if settings["random_calibration"] else dataset
    return lent, real, {"data_sha256": dataset.fingerprint()}


@click.command()
@click.argument("model")
@click.option(
    "--policy", metavar="P.json", help="Schemes layer by layer (.json or .csv; see 'onnxq policy')."
)
@click.option(
    "--weights",
    default="int8",
    show_default=True,
    help="int2 to int8, int16, uint8:asym, gse2 to gse8 (gse6:block32), tcq2 to tcq5, mxfp4, mxint8, "
    "float16 or float.",
)
@click.option("--granularity", metavar="G", help="channel (default), tensor or blockN, as in block32.")
@click.option(
    "--activations",
    default="uint8",
    show_default=True,
    help="uint8, int8, int16, int8:sym, dynamic, gse8 (simulated) or float.",
)
@calibration_option
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "analytic", "bias", "gptq", "adaround", "brecq"]),
    default="nearest",
    show_default=True,
    help="analytic: biases corrected by what folded BatchNormalization says. By calibration data: bias,"
    " biases alone; gptq, weights and biases, for 6 bits and below; adaround, learned on top of it, slower;"
    " brecq, learned by blocks of layers on top of that, slowest (needs torch).",
)
@damping_option("auto")
@click.option(
    "--brecq-steps",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Of rounding brecq: steps of its learning for each block.",
)
@click.option(
    "--exclude",
    metavar="SEL",
    multiple=True,
    help="Layers that stay float: name, glob, op:Gemm, first, last, re:...",
)
@smooth_options()
@click.option(
    "--standard",
    is_flag=True,
    help="Only types that ONNX has, for runtimes that know nothing of us: no bit streams.",
)
@click.option("--no-fold", is_flag=True, help="Do not simplify and fold first.")
@data_options()
@click.option(
    "--random-calibration", is_flag=True, help="Calibrate on random numbers; says nothing about accuracy."
)
@output_option("MODEL.<scheme>.onnx beside the input, as in model.int8.onnx")
@click.option("--explain", is_flag=True, help="Print every note of the passes: what and why.")
@json_option
@config_option
@hub_option
def quantize(
    model: str,
    output: str | None,
    explain: bool,
    as_json: bool,
    hub: str | None,
    threads: int,
    **settings: Any,
) -> None:
    """Write MODEL quantized, by one scheme for all layers or by a policy.

    \b
    onnxq quantize model.onnx --data images/ --preprocess imagenet
    onnxq quantize model.onnx --weights int4 --granularity block32 --activations float
    onnxq quantize model.onnx --weights gse6 --activations float
    onnxq quantize model.onnx --weights tcq4 --activations float --rounding gptq --data D
    onnxq quantize model.onnx --activations dynamic --exclude last
    """
    from onnxq.cli.output import output_path, stamped
    from onnxq.cli.progress import RoundingProgress
    from onnxq.cli.rewrite import rewritten
    from onnxq.hub import resolve
    from onnxq.proof import Reference, write_model
    from passes.core.base import Context
    from passes.core.recipe import format_pass
    from passes.graph.model import load
    from passes.placement.unquantizable import refuse_unchanged

    recipe = _recipe(settings)
    path = str(resolve(model, hub))
    loaded = load(path)
    suffix = "quantized" if settings["policy"] else settings["weights"].split(":")[0]
    target = output_path(output, path, suffix)
    with RoundingProgress() as told:
        lent, dataset, remembered = _lent(loaded, settings, resolve_threads(threads), told)
        reference = Reference(loaded, dataset)
        result = rewritten(reference, recipe, Context(**lent))
    refuse_unchanged(loaded, result.model)
    config = {key: value for key, value in settings.items() if key != "policy"}
    config |= {"recipe": format_pass(recipe) if not settings["policy"] else "", **remembered}
    written = write_model(stamped(result.model, "quantize", config), target, reference)
    _report(result, path, target, written, explain, as_json)


def _report(
    result: PassResult, source: str, target: Path, file: Written, explain: bool, as_json: bool
) -> None:
    from onnxq.cli.rewrite import show_notes
    from onnxq.cli.stays_float import float_share_text
    from onnxq.cli.terminal import megabytes, print_json, ratio, remark
    from onnxq.evaluation import surviving_qdq
    from onnxq.files import scratch_folder
    from onnxq.float_share import float_weights
    from onnxq.inspection import layer_facts
    from passes.graph.model import load, size_on_disk

    before, size = size_on_disk(Path(source)), file.size
    with scratch_folder() as folder:
        left = surviving_qdq(target, folder)
    written = load(target)
    layers, unquantized = layer_facts(written), float_weights(written)
    padded = [layer for layer in layers if layer.padded]
    quantized = [layer for layer in layers if layer.weights != "float"]
    if as_json:
        print_json(
            {
                "output": str(target),
                "bytes": size,
                "bytes_before": before,
                "layers": len(layers),
                "quantized": len(quantized),
                "surviving_qdq": left,
                "padded": [layer.name for layer in padded],
                "stays_float": [vars(weight) for weight in unquantized],
                "notes": [vars(note) for note in result.notes],
                "proof": file.proof.to_json(),
            }
        )
        return
    show_notes(result.notes, explain)
    say(
        f"{target}: {len(quantized)} of {len(layers)} layers quantized, "
        f"{megabytes(before)} -> {megabytes(size)} ({ratio(size, before)})"
    )
    remark(f"  {file.proof.sentence()}")
    share = float_share_text(unquantized, size)
    if share:
        remark(f"  {share}")
    remark(
        f"  left after ONNX Runtime's own optimisation: {left['QuantizeLinear']} QuantizeLinear, "
        f"{left['DequantizeLinear']} DequantizeLinear"
    )
    if left["DequantizeLinear"] >= max(len(quantized), 2):
        remark("  ONNX Runtime has no integer kernels for this scheme; the layers run in float, no faster")
    if padded:
        first = padded[0]
        bits = first.policy.split("/")[0]
        remark(
            f"  {len(padded)} layer(s) have codes of {bits} in {first.stored_bits}-bit tensors: ONNX has no "
            "narrower type, so the file is no smaller than that"
        )
