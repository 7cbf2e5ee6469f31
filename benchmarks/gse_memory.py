"""The memory column of GSE-MN4's Table 1, from timm's architectures, beside the files really written.

    python benchmarks/gse_memory.py

Needs torch and timm beside onnxq. Weights are random: sizes do not depend on them. Formula, in MiB, for N
weights of Conv and Linear layers: BF16 N * 2; integers at group 128 N * (b + 32/128) / 8, a float16 scale and
zero point a group; GSE-INT at group 32 N * (b + 5/32) / 8. A file holds biases, the graph and tables as well,
and groups that end with their row; it may weigh 3 % + 200 KB more than the formula.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from passes import FoldBatchNorm, Model, Quantize, Simplify, find_layers, load, save

MODELS = {
    "mobilenetv4_conv_small": 3_747_936,
    "mobilenetv4_conv_medium": 9_646_608,
    "mobilenetv4_hybrid_medium": 10_991_632,
}
MIB = 2**20
# Column of the table -> (scheme, bits per weight of the formula).
ROWS = {
    "INT8 g128": ("int8:block128:asym", 8 + 32 / 128),
    "INT6 g128": ("int6:block128:asym", 6 + 32 / 128),
    "GSE-INT8 g32": ("gse8:block32", 8 + 5 / 32),
    "GSE-INT6 g32": ("gse6:block32", 6 + 5 / 32),
}


def exported(name: str, folder: Path) -> Model:
    """timm's network with random weights, BatchNorm folded."""
    # timm imports torchvision; beside another build of torch that has no operators, so declare two, unused.
    held = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        held.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    network = timm.create_model(name, pretrained=False).eval()
    size = network.default_cfg["input_size"]
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(1, *size),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
    return (Simplify() | FoldBatchNorm())(load(path)).model


def main() -> None:
    print("| model | weights | format | formula MiB | file MiB | file / formula | within 3 % + 200 KB |")
    print("| --- | ---: | --- | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, expected in MODELS.items():
            model = exported(name, Path(folder))
            count = sum(layer.weights for layer in find_layers(model))
            if count != expected:
                raise SystemExit(f"{name}: {count} weights of Conv and Linear, the paper has {expected}")
            print(f"| {name} | {count:,} | BF16 | {count * 2 / MIB:.2f} | | | |")
            for label, (scheme, bits) in ROWS.items():
                made = Quantize(weights=scheme, activations="float")(model).model
                size, formula = save(made, Path(folder) / "q.onnx"), count * bits / 8
                fits = size <= 1.03 * formula + 200_000
                sizes = f"{formula / MIB:.2f} | {size / MIB:.2f} | {size / formula:.3f}"
                print(f"| | | {label} | {sizes} | {'yes' if fits else 'NO'} |")


if __name__ == "__main__":
    main()
