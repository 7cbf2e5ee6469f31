"""`train`: quantization-aware training of an ONNX model."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.options import Duration, config_option, data_options, hub_option, json_option, output_option

if TYPE_CHECKING:
    from onnxq.training import TrainConfig
    from onnxq.training.run import Outcome

__all__ = ["train"]


def _choice(*names: str, default: str, text: str) -> dict[str, Any]:
    return {"type": click.Choice(names), "default": default, "show_default": True, "help": text}


def _number(default: float, text: str) -> dict[str, Any]:
    return {"type": float, "default": default, "show_default": True, "help": text}


@click.command()
@click.argument("model")
@click.option("--method", **_choice("msq", "qat", "smpq", default="msq", text="What finds the bits."))
@data_options(required=True, calibration=False)
@click.option("--validation", metavar="D", help="Labelled data to measure accuracy on; never trained on.")
@click.option("--compression", **_number(10.67, "msq: 32 over the mean bits of a weight, up to 16."))
@click.option(
    "--activations", default="float", show_default=True, help="Bits (3), a scheme (uint8) or float."
)
@click.option("--policy", metavar="P.json", help="qat: schemes layer by layer.")
@click.option("--weights", default="int4", show_default=True, help="qat: one scheme for all layers.")
@click.option(
    "--quantizer", **_choice("lsq", "roundclamp", "dorefa", default="lsq", text="qat: of integers.")
)
@click.option(
    "--ranges", **_choice("lsq", "pact", default="lsq", text="How ranges of activations are learned.")
)
@click.option("--bits", default="2,3,4,6,8", show_default=True, help="smpq: widths to choose from.")
@click.option("--bops", **_number(0.25, "smpq: bit operations, as a share of uniform 8/8."))
@click.option("--search-share", **_number(0.5, "smpq: part of the epochs that trains the supernet."))
@click.option("--updates", type=click.IntRange(min=1), default=4, show_default=True, help="smpq: of alpha.")
@click.option(
    "--permutations", type=click.IntRange(min=1), default=2, show_default=True, help="smpq: an update."
)
@click.option("--epochs", **_number(12.0, "Passes over the data; may be a fraction."))
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Samples a step.")
@click.option("--lr", **_number(0.05, "Peak of the learning rate; a cosine follows."))
@click.option("--momentum", **_number(0.9, "Of SGD (Nesterov)."))
@click.option("--decay", **_number(1e-4, "Weight decay of the layers."))
@click.option("--optimizer", **_choice("sgd", "adamw", default="sgd", text="What takes the steps."))
@click.option(
    "--distill", **_number(0.0, "Share of the float model's outputs in the loss; 1 needs no labels.")
)
@click.option("--temperature", **_number(4.0, "Of the distillation."))
@click.option("--augment", default="crop,flip", show_default=True, help="crop, flip, both or none.")
@click.option("--lambda", "lam", **_number(0.5, "msq: strength of the regularizer."))
@click.option("--alpha", **_number(0.3, "msq: share of nonzero LSBs below which a layer loses bits."))
@click.option("--rounds", type=click.IntRange(min=1), default=8, show_default=True, help="msq: of pruning.")
@click.option("--prune-share", **_number(0.4, "msq: part of the training in which bits go."))
@click.option(
    "--strength", **_choice("gradient", "plain", default="gradient", text="msq: what lambda scales.")
)
@click.option("--steps", **_choice("learned", "max", default="learned", text="msq: step size of weights."))
@click.option(
    "--precision", **_choice("auto", "float32", "bfloat16", default="auto", text="auto: by device.")
)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile; a minute first, then faster.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
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
    from onnxq.training import TrainConfig
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
