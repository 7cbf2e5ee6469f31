"""`info`, `policy` and `passes`: read, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli.options import hub_option, json_option
from onnxq.cli.terminal import say, write_text

__all__ = ["info", "passes", "policy"]


def _shape(dims: list[Any] | None) -> str:
    return "?" if dims is None else "x".join(map(str, dims)) or "scalar"


def _print_info(facts: dict[str, Any]) -> None:
    from onnxq.cli.terminal import count, megabytes, table

    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opset"].items())
    lines = {
        "model": f"{facts['model']}  ({megabytes(facts['bytes'])})",
        "opset": f"{opsets}; IR {facts['ir_version']}"
        + (f"; by {facts['producer']}" if facts["producer"] else ""),
        "inputs": ", ".join(f"{v['name']} {v['dtype']} {_shape(v['shape'])}" for v in facts["inputs"]),
        "outputs": ", ".join(f"{v['name']} {v['dtype']} {_shape(v['shape'])}" for v in facts["outputs"]),
        "ops": ", ".join(f"{number} {op}" for op, number in facts["ops"].items()),
        "size": f"{count(facts['parameters'])} parameters, {count(facts['macs'])} MACs per sample",
    }
    for key, text in lines.items():
        say(text, label=f"{key:<8}")
    for key in ("config", "smooth", "exclude"):
        if key in facts["metadata"]:
            say(facts["metadata"][key], label=f"{key:<8}")
    layers = facts["layers"]
    if not layers:
        say("no quantizable layer (Conv, ConvTranspose, Gemm or MatMul with a constant weight)")
        return
    quantized = any(layer["weights"] != "float" for layer in layers)
    columns = ["layer", "op", "weight", "groups", "weights", "MACs"]
    rows = []
    for layer in layers:
        row = [
            layer["name"],
            layer["op"],
            _shape(layer["weight_shape"]),
            str(layer["groups"]),
            count(layer["parameters"]),
            count(layer["macs"]),
        ]
        rows.append([*row, _scheme(layer)] if quantized else row)
    say()
    table([*columns, "scheme"] if quantized else columns, rows, right=(3, 4, 5))


def _scheme(layer: dict[str, Any]) -> str:
    """Weights / activations as they stand in the file, with the policy's own words where they differ."""
    real = f"{layer['weights']} / {layer['activations']}"
    wanted = layer["policy"].split("/")[0]
    if wanted and wanted.removesuffix(":tensor") != layer["weights"]:
        return f"{wanted} in {real}"
    return real


@click.command()
@click.argument("model")
@json_option
@hub_option
def info(model: str, as_json: bool, hub: str | None) -> None:
    """Opset, inputs, ops, sizes and the layers of MODEL.

    Of a quantized model the schemes are read from its DequantizeLinear nodes; where the policy in its
    metadata says something else (6 bits in an int8 tensor), both are shown.
    """
    from onnxq.cli.terminal import print_json
    from onnxq.hub import resolve
    from onnxq.inspection import describe
    from passes.graph.model import load, size_on_disk

    path = resolve(model, hub)
    size = size_on_disk(path)
    facts = describe(load(path, weights=False), size)
    if as_json:
        print_json(facts)
    else:
        _print_info(facts)


@click.command()
@click.argument("model")
@click.option("-o", "--output", metavar="OUT", help="File to write; default stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="One line a layer instead of JSON.")
@click.option(
    "--weights", default="int8:channel", show_default=True, help="Scheme of a float model's layers."
)
@click.option("--activations", default="uint8", show_default=True, help="Scheme of their activations.")
def policy(model: str, output: str | None, as_csv: bool, weights: str, activations: str) -> None:
    """A policy file to edit and give to `quantize --policy`.

    Of a quantized model, the policy that made it; of a float one, the same scheme for every layer (as the
    layers are named after simplify and fold).
    """
    import json

    from onnxq.cli.output import check_output
    from onnxq.files import atomic_write
    from passes.core.errors import UnsupportedModelError
    from passes.graph.jsontext import parse_json
    from passes.graph.layers import find_layers
    from passes.graph.model import load
    from passes.policy import Policy
    from passes.preparation import preparation
    from passes.quantize import activation_scheme, weight_scheme

    loaded = load(model)
    if "onnxq.policy" in loaded.metadata:
        found = Policy.from_json(
            parse_json(loaded.metadata["onnxq.policy"], f"{model}: the policy in its metadata"), model
        )
    else:
        layers = find_layers(preparation()(loaded).model)
        if not layers:
            raise UnsupportedModelError(f"{model}: has no quantizable layer, so there is no policy to write")
        found = Policy.uniform(layers, weight_scheme(weights), activation_scheme(activations))
    text = found.to_csv() if as_csv else json.dumps(found.to_json(), indent=2) + "\n"
    if output is None:
        write_text(text)
        return
    check_output(Path(output), Path(model))
    atomic_write(output, text)
    say(f"{output}: {len(found)} layers")


@click.command()
@json_option
def passes(as_json: bool) -> None:
    """List the passes of recipes and their options with defaults."""
    import dataclasses
    import inspect

    import passes as registry
    from onnxq.cli.terminal import print_json
    from passes.core.base import pass_class

    found: list[dict[str, Any]] = []
    for name in registry.pass_names():
        cls: Any = pass_class(name)
        options = {
            spec.name: None if spec.default is dataclasses.MISSING else spec.default
            for spec in dataclasses.fields(cls)
        }
        text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        found.append({"name": name, "options": options, "help": text})
    if as_json:
        print_json(found)
        return
    for entry in found:
        shown = " ".join(
            f"{key}=..." if value is None else f"{key}={_text(value)}"
            for key, value in entry["options"].items()
        )
        say(f"{{{shown}}}" if shown else "", label=str(entry["name"]))
        say(f"    {entry['help']}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) or '""' if isinstance(value, tuple) else str(value) or '""'
