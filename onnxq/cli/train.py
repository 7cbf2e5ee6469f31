"""`train`: quantization-aware training of an ONNX model."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.declared import declared_options
from onnxq.cli.options import Duration, config_option, data_options, hub_option, json_option, output_option
from onnxq.training.config import TrainConfig

if TYPE_CHECKING:
    from onnxq.training.run import Outcome

__all__ = ["train"]


@click.command()
@click.argument("model")
@declared_options(TrainConfig, "method")
@data_options(required=True, calibration=False)
@click.option("--validation", metavar="D", help="Labelled data to measure accuracy on; never trained on.")
@declared_options(TrainConfig, "compression", "activations", "policy", "weights", "quantizer", "ranges")
@click.option(
    "--bits", default="2,3,4,6,8", show_default=True, help="Bits to choose from. (With --method smpq.)"
)
@declared_options(TrainConfig, "bops", "search_share", "updates", "permutations")
@declared_options(TrainConfig, "epochs", "batch", "lr", "momentum", "decay", "optimizer")
@declared_options(TrainConfig, "distill", "temperature")
@click.option("--augment", default="crop,flip", show_default=True, help="crop, flip, both or none.")
@declared_options(
    TrainConfig, "lam", "alpha", "rounds", "prune_share", "strength", "steps", flags={"lam": "--lambda"}
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of convolutions and products; auto takes bfloat16 on CUDA, float32 elsewhere.",
)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute first, then faster.")
@declared_options(TrainConfig, "device")
@click.option(
    "--for", "stop_s", type=Duration(), default=0.0, help="Stop after 10m; the same line continues."
)
@click.option("--checkpoint", "checkpoint_s", type=Duration(), default=60.0, help="Time between checkpoints.")
@click.option("--fresh", is_flag=True, help="Start anew, whatever checkpoint is there.")
@output_option("MODEL.<method>.onnx beside the input")
@json_option
@config_option
@hub_option
def train(
    model: str, output: str | None, as_json: bool, hub: str | None, fresh: bool, **settings: Any
) -> None:
    """Train MODEL with quantized weights and write it with its weights at their bits.

    \b
    onnxq train model.onnx --method msq --data D --preprocess cifar --compression 16 -o small.onnx
    onnxq train model.onnx --method qat --policy P.json --data D --preprocess cifar --distill 0.9
    onnxq train model.onnx --method smpq --bops 0.25 --activations 4 --data D --preprocess cifar

    Needs torch: pip install 'onnxq[train]'. Checkpoint, log and plots go to OUT.train; the same line again
    continues from the checkpoint.
    """
    from onnxq.training import require_torch

    require_torch()
    from onnxq.cli.datasets import open_for
    from onnxq.cli.output import output_path, stamped
    from onnxq.cli.training import Live, report
    from onnxq.hub import resolve
    from onnxq.proof import Reference, write_model
    from onnxq.training import draw, start
    from passes.graph.model import load

    path = str(resolve(model, hub))
    loaded = load(path)
    target = output_path(output, path, settings["method"])
    config = _config(settings)
    folder = target.with_suffix(".train")
    data = open_for(loaded, settings["data"], settings["preprocess"], settings["limit"], settings["seed"])
    given = settings["validation"]
    validation = open_for(loaded, given, settings["preprocess"], 0, settings["seed"]) if given else None
    if fresh:
        _clear(folder)
    with Live() as live:
        outcome = start(config, loaded, data, validation, folder=folder, progress=live)
    draw(outcome.history, folder, Path(path).name)
    made = outcome.model
    if made is None:
        raise _stopped(folder, outcome, as_json)
    stamp = {key: value for key, value in config.identity().items() if key != "policy"}
    written = write_model(stamped(made, "train", stamp), target, Reference(made.origin, validation or data))
    report(outcome, target, folder, written, Path(path).stat().st_size, as_json)


def _config(settings: dict[str, Any]) -> TrainConfig:
    from onnxq.cli.options import splitted
    from passes.core.errors import UserError
    from passes.policy import load_policy

    augment = set(splitted((settings["augment"],))) - {"none"}
    if augment - {"crop", "flip"}:
        raise UserError(f"--augment {settings['augment']}: write crop, flip, crop,flip or none")
    try:
        bits = tuple(sorted({int(part) for part in splitted((settings["bits"],))}))
    except ValueError:
        raise UserError(f"--bits {settings['bits']}: write numbers such as 2,3,4,6,8") from None
    policy = ""
    if settings["policy"]:
        policy = json.dumps(load_policy(settings["policy"]).to_json(), separators=(",", ":"))
    known = {field.name for field in fields(TrainConfig)} - {"precision", "policy", "bits"}
    return TrainConfig(
        **{name: value for name, value in settings.items() if name in known},
        crop="crop" in augment,
        flip="flip" in augment,
        precision="" if settings["precision"] == "auto" else settings["precision"],
        compile=settings["compiled"],
        policy=policy,
        bits=bits,
    )


def _clear(folder: Path) -> None:
    for name in (
        "checkpoint.pt",
        "log.jsonl",
        "search/checkpoint.pt",
        "search/log.jsonl",
        "search/search.json",
    ):
        (folder / name).unlink(missing_ok=True)


def _stopped(folder: Path, outcome: Outcome, as_json: bool) -> click.exceptions.Exit:
    """Says so, and gives exit code 4."""
    from onnxq.cli.terminal import print_json, remark

    step = outcome.history[-1]["step"] if outcome.history else 0
    if as_json:
        print_json({"finished": False, "folder": str(folder), "step": step})
    remark(f"{folder}: stopped before the end; the same line continues")
    return click.exceptions.Exit(4)
