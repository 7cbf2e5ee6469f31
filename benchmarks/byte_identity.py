"""The same files before and after a change of the code: SHA-256 of what recipes make of networks.

    python benchmarks/byte_identity.py --out before.json
    python benchmarks/byte_identity.py --against before.json

About 90 recipes run over two small networks that are made here, a selection of them over a float16 network,
ResNet-20, MobileNetV4 and, where it is there, a network of ../shared/models. A refusal is recorded by its
text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxq.calibration import CalibratedRanges
from onnxq.data import input_specs, random_dataset
from onnxq.rounding import DataRounder
from passes import Context, Model, Policy, UserError, find_layers, load, parse_recipe, preparation
from passes.graph.model import serialize

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 8

WEIGHTS = (
    *(f"int{bits}:channel" for bits in (2, 3, 4, 5, 6, 7, 8, 16)),
    *(f"int{bits}:tensor" for bits in (3, 4, 8)),
    *(f"int{bits}:block32" for bits in (2, 4, 5, 8)),
    *("uint2", "uint3:asym", "uint4:channel", "uint6:block16:asym", "uint8:asym", "uint4:sym", "int4:asym"),
    *(f"gse{bits}" for bits in (2, 3, 4, 5, 6, 7, 8)),
    *("gse4:block16", "gse8:block64:paper"),
    *(f"tcq{bits}" for bits in (2, 3, 4, 5)),
)
ACTIVATIONS = (
    *(("int8:channel", text) for text in ("uint8", "int8:sym", "uint4", "uint16", "dynamic8")),
    ("int8:channel", "gse8:block16"),
    *(("int4:channel", text) for text in ("uint8", "dynamic8", "gse6")),
    *(("int3:channel", text) for text in ("uint8", "dynamic8")),
    *(("int4:block32", "uint8"), ("gse6", "uint8"), ("tcq3", "uint8"), ("gse4", "gse8:block8")),
    *(("float", "uint8"), ("uint8:asym", "uint8"), ("int8", "uint8"), ("int2:channel", "dynamic8")),
)
STANDARD = ("int5:channel", "gse6", "gse4:block16", "int8:channel", "uint3", "tcq3")
ROUNDED = (
    ("int4:channel", "float", "gptq"),
    ("int3:block16", "float", "gptq"),
    ("uint5:asym", "float", "gptq"),
    ("gse4", "float", "gptq"),
    ("tcq3", "float", "gptq"),
    ("int8:channel", "uint8", "gptq"),
    ("int4:tensor", "uint8", "gptq"),
    ("int4:channel", "uint8", "bias"),
    ("gse3", "uint8", "bias"),
    ("tcq2", "uint8", "gptq"),
    ("int4:channel", "float", "adaround"),
    ("gse4", "float", "adaround"),
    ("gse6:paper", "float", "gptq"),
    ("int8:channel", "uint8", "analytic"),
)
# Of these every network gets a file; the large ones are slow.
SELECTION = (
    "int8:channel float",
    "int4:block32 float",
    "int3:channel float",
    "uint6:block16:asym float",
    "gse6 float",
    "gse4:block16 float",
    "int8:channel uint8",
    "int3:channel uint8",
    "gse6 uint8",
    "int4:channel dynamic8",
    "gse6 float standard",
    "int4:channel float gptq",
    "gse4 float gptq",
    "mixed",
    "smooth",
)


def recipes() -> Iterator[tuple[str, str]]:
    """(label, recipe); the ones that say POLICY or MIDDLE are completed for each network."""

    def quantize(weights: str, activations: str, **options: str) -> str:
        text = activations.replace("dynamic8", "uint8:dynamic")
        given = {"weights": f'"{weights}"', "activations": f'"{text}"', **options}
        return "quantize{" + " ".join(f"{key}={value}" for key, value in given.items()) + "}"

    for weights in WEIGHTS:
        yield f"{weights} float", quantize(weights, "float")
    for weights, activations in ACTIVATIONS:
        yield f"{weights} {activations}", quantize(weights, activations)
    for weights in ("int8:channel", "int5:channel", "gse6", "tcq3", "int4:block32"):
        yield f"{weights} uint8 inputs", quantize(weights, "uint8", placement="inputs")
    for weights in STANDARD:
        yield f"{weights} float standard", quantize(weights, "float", standard="true")
    yield "gse4 uint8 standard", quantize("gse4", "uint8", standard="true")
    for weights, activations, rounding in ROUNDED:
        yield f"{weights} {activations} {rounding}", quantize(weights, activations, rounding=rounding)
    yield "tcq3 uint8 inputs gptq", quantize("tcq3", "uint8", placement="inputs", rounding="gptq")
    yield "int5 uint8 inputs gptq", quantize("int5:channel", "uint8", placement="inputs", rounding="gptq")
    yield "exclude", quantize("int8:channel", "uint8", exclude="MIDDLE")
    yield "smooth", "smooth{site=output} | " + quantize("int4:channel", "uint8")
    yield "smooth input", "smooth{site=input} | " + quantize("int8:channel", "uint8")
    yield "mixed", "POLICY"
    yield "mixed gptq", "POLICY gptq"
    yield "decode", quantize("gse5", "float") + " | decode"
    yield "decode tcq", quantize("tcq4", "float") + " | decode"
    yield "decode packed", quantize("int6:block16:asym", "float") + " | decode"


def mixed(model: Model) -> Policy:
    """Every layer another scheme, in turn."""
    kinds = (
        ("int8:channel", "uint8"), ("gse4", "float"), ("int5:channel", "float"), ("tcq3", "uint8"),
        ("float", "float"), ("int3:channel", "uint8"), ("int4:block32", "uint8"), ("gse6:block16", "uint8"),
        ("int8:channel", "uint8:dynamic"), ("uint4:asym", "float"),
    )  # fmt: skip
    layers = {
        layer.name: {"weights": kinds[at % len(kinds)][0], "activations": kinds[at % len(kinds)][1]}
        for at, layer in enumerate(find_layers(model))
    }
    for entry in layers.values():
        if entry["activations"].startswith("uint8"):
            entry["activations"] += ":asym" if "dynamic" not in entry["activations"] else ""
    return Policy.from_json({"layers": layers})


class _Maker:
    def __init__(self, dtype: Any = np.float32) -> None:
        self.rng, self.dtype = np.random.default_rng(7), np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def array(self, *shape: int) -> str:
        values = self.rng.normal(0, 1 / np.sqrt(max(np.prod(shape[1:]), 1)), shape).astype(self.dtype)
        self.held.append(numpy_helper.from_array(values, f"w{len(self.held)}"))
        return self.held[-1].name

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, **attrs))
        return f"{name}_out"

    def model(self, shape: Sequence[int | str], result: str, rank: int) -> Model:
        kind = int(helper.np_dtype_to_tensor_dtype(self.dtype))
        graph = helper.make_graph(
            self.nodes,
            "made",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(result, kind, [None] * rank)],
            self.held,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return Model(proto, "made")


def convolutions(dtype: Any = np.float32) -> Model:
    """Conv, depthwise Conv, residual Add, ConvTranspose, Gemm both ways and a MatMul."""
    net = _Maker(dtype)
    x = net.add("Relu", net.add("Conv", "x", net.array(16, 3, 3, 3), net.array(16), pads=[1] * 4))
    y = net.add("Relu", net.add("Conv", x, net.array(16, 1, 3, 3), net.array(16), pads=[1] * 4, group=16))
    y = net.add("Add", x, net.add("Conv", y, net.array(16, 16, 1, 1), net.array(16)))
    y = net.add("Conv", y, net.array(33, 16, 3, 3), net.array(33), pads=[1] * 4, strides=[2, 2])
    y = net.add("Relu", net.add("ConvTranspose", y, net.array(33, 12, 2, 2), strides=[2, 2]))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    y = net.add("Relu", net.add("Gemm", y, net.array(40, 12), net.array(40), transB=1))
    y = net.add("Gemm", y, net.array(40, 45), net.array(45), alpha=0.5)
    return net.model(["N", 3, 12, 12], net.add("MatMul", y, net.array(45, 10)), 2)


def products() -> Model:
    """MatMuls of a block with attention's shape; two read one weight, one has its weight on the left."""
    net = _Maker()
    shared = net.array(64, 64)
    query, key = net.add("MatMul", "x", shared), net.add("MatMul", "x", net.array(64, 64))
    scores = net.add("Softmax", net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1])))
    y = net.add("MatMul", net.add("MatMul", scores, net.add("MatMul", "x", shared)), net.array(64, 96))
    y = net.add("MatMul", net.add("Relu", net.add("Add", y, net.array(96))), net.array(96, 64))
    y = net.add("MatMul", net.array(12, 10), net.add("Add", "x", y))
    return net.model(["N", 10, 64], y, 3)


def networks() -> dict[str, Model]:
    found = {"convolutions": convolutions(), "products": products(), "float16": convolutions(np.float16)}
    for name in ("resnet20", "mobilenetv4_small"):
        found[name] = load(ROOT / f"models/{name}.onnx")
    extra = ROOT.parent / "shared/models/super_resolution_x3.onnx"
    extra = extra if extra.exists() else Path("/work/shared/models/super_resolution_x3.onnx")
    if extra.exists():
        found["super_resolution"] = load(extra)
    return found


def made(model: Model, recipe: str, rounded: bool) -> str:
    """The hash of the file, or the refusal."""
    dataset = random_dataset(input_specs(model.proto), SAMPLES, 0)
    ranges = CalibratedRanges(dataset, "minmax")
    context = Context(ranges=lambda at, tensors: ranges(at.proto, tensors), check=False)
    if rounded:
        context.rounder = DataRounder(dataset)
    try:
        return hashlib.sha256(serialize(parse_recipe(recipe)(model, context).model)).hexdigest()
    except UserError as error:
        return f"{type(error).__name__}: {error}"


def run(chosen: str) -> dict[str, str]:
    """Label -> hash."""
    found: dict[str, str] = {}
    for name, model in networks().items():
        prepared = preparation()(model, Context(check=False)).model
        policy, layers = json.dumps(mixed(prepared).to_json()), find_layers(prepared)
        for label, recipe in recipes():
            small = name in ("convolutions", "products")
            if (not small and label not in SELECTION) or chosen not in f"{name}: {label}":
                continue
            text = recipe.replace("MIDDLE", layers[len(layers) // 2].name)
            if text.startswith("POLICY"):
                how = "gptq" if text.endswith("gptq") else "nearest"
                quoted = policy.replace("\\", "\\\\").replace('"', '\\"')
                text = f'quantize{{policy="{quoted}" rounding={how}}}'
            started = time.perf_counter()
            analytic = model if "analytic" in text else prepared
            text = f"fold_batchnorm | {text}" if "analytic" in text else text
            found[f"{name}: {label}"] = made(analytic, text, "rounding=" in text)
            if (spent := time.perf_counter() - started) > 5:
                print(f"{name}: {label} took {spent:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the hashes to this JSON file")
    parser.add_argument("--against", type=Path, help="compare with the hashes of an earlier run")
    parser.add_argument("--only", default="", help="part of the label of what runs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    found = run(args.only)
    refused = sum(not (len(text) == 64 and text.isalnum()) for text in found.values())
    print(f"{len(found)} files, {refused} refused")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.against:
        before = json.loads(args.against.read_text(encoding="utf-8"))
        differing = [name for name in found if before.get(name, found[name]) != found[name]]
        for name in differing:
            print(f"{name}\n  before {before[name]}\n  now    {found[name]}")
        print(f"{len(differing)} of {len(found)} differ")
        raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
