"""The bridge against ONNX Runtime: forward equality, two training steps, weights written back, equality
again.

    python benchmarks/training_bridge.py [--exporter legacy|dynamo] [NET or FILE.onnx ...]

Networks are timm's with random weights, exported by torch.onnx here and now (needs torch, timm, torchvision;
dynamo: onnxscript), or files. Differences are the largest one of the logits over the largest logit; asked:
1e-4. The training steps are SGD with momentum, in training mode, on random inputs and labels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch.nn import functional

from models.train import register_torchvision
from onnxq.training.network import Network
from passes.core.errors import UserError
from passes.graph.model import Model, load, serialize

NETS = {
    "resnet18": 224,
    "resnet50": 224,
    "mobilenetv3_large_100": 224,
    "mobilenetv4_conv_small": 224,
    "mobilenetv4_hybrid_medium": 224,
    "efficientnet_b0": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
}
FILES = ("models/resnet20.onnx", "models/mobilenetv4_small.onnx", "../shared/models/efficientnet_lite0.onnx")


def export(name: str, size: int, path: Path, exporter: str) -> None:
    register_torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=100)
    with torch.no_grad():
        for _ in range(3):  # statistics that are not 0 and 1
            model.train()(torch.randn(4, 3, size, size))
    options = {"dynamo": True} if exporter == "dynamo" else {"dynamo": False, "opset_version": 17}
    if exporter != "dynamo":
        options |= {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    torch.onnx.export(model.eval(), (torch.zeros(2, 3, size, size),), str(path), **options)


def difference(model: Model, network: Network, x: np.ndarray) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {network.inputs[0]: x})[0]
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(x)).numpy()
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


def two_steps(network: Network, x: np.ndarray) -> float:
    """Largest change of a weight, which must not be 0."""
    before = network.arrays()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step in range(2):
        logits = network.train()(torch.from_numpy(x + np.float32(0.1 * step)))
        labels = torch.arange(len(x)) % logits.shape[1]
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    after = network.arrays()
    return max(float(np.abs(after[name] - before[name]).max()) for name in before)


def measure(name: str, model: Model) -> None:
    began = time.time()
    try:
        network = Network(model)
        shape = [d.dim_value or 2 for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        before = difference(model, network, x)
        moved = two_steps(network, x)
        after = difference(network.written(), network, x)
    except UserError as error:
        print(f"| {name} | {error} |", flush=True)
        return
    trained = sum(weight.numel() for weight in network.weights)
    print(
        f"| {name} | {len(model.proto.graph.node)} | {trained:,} | {before:.1e} | {moved:.1e} | "
        f"{after:.1e} | "
        f"{time.time() - began:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--exporter", choices=["legacy", "dynamo"], default="legacy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | nodes | trained values | forward | moved by | after two steps | s |\n|" + " --- |" * 7)
    for name in args.names or [*FILES, *NETS]:
        if name.endswith(".onnx"):
            measure(Path(name).stem, load(name))
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            export(name, NETS.get(name, 224), path, args.exporter)
            measure(name, load(path))


if __name__ == "__main__":
    main()
