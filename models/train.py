"""Train the two shipped CIFAR-10 networks and export them to ONNX with BatchNorm unfolded.

    python models/train.py resnet20 --data ../shared/data --epochs 24
    python models/train.py mobilenetv4_small --data ../shared/data --epochs 30

Needs torch and timm (not dependencies of onnxq), and the CIFAR-10 JPEG zips with one folder
per class. Training is resumable: a checkpoint is written after every epoch.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The `cifar` preset of onnxq: (RGB/255 - mean) / std.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load_split(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N], in the order of the zip's sorted names."""
    cache = Path("/tmp") / f"{path.stem}.npz"
    if not cache.exists():
        images, labels = [], []
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                labels.append(CLASSES.index(name.split("/")[-2]))
        np.savez(cache, x=np.stack(images).transpose(0, 3, 1, 2), y=np.asarray(labels))
    with np.load(cache) as data:
        return torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()


def normalise(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random crop out of a 4-pixel reflect padding and a random horizontal flip, per image."""
    n = len(images)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    dy = torch.randint(0, 9, (n, 1), generator=generator)
    dx = torch.randint(0, 9, (n, 1), generator=generator)
    rows = (dy + torch.arange(32)).view(n, 1, 32, 1)
    columns = dx + torch.arange(32)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns).view(n, 1, 1, 32)
    index = torch.arange(n).view(n, 1, 1, 1)
    return padded[index, torch.arange(3).view(1, 3, 1, 1), rows, columns]


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2: three stages of three blocks, 16/32/64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, cin = [], 16
        for cout, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(3):
                blocks.append(BasicBlock(cin, cout, stride if i == 0 else 1))
                cin = cout
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mobilenetv4_small() -> nn.Module:
    """timm's MobileNetV4-Conv-Small-0.5 with CIFAR strides: stem and first stage keep 32 x 32.

    Every UIB block, its 3x3 and 5x5 depthwise kernels, the head and ReLU are timm's.
    """
    # timm imports torchvision, whose CUDA wheel has no operators under a CPU torch: declare two, unused.
    stub = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        stub.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    model = timm.create_model("mobilenetv4_conv_small_050", num_classes=10)
    model.conv_stem.stride = (1, 1)
    model.blocks[0][0].conv.stride = (1, 1)
    return model


def keep_depthwise_float(model: nn.Module) -> None:
    """Run depthwise convolutions outside autocast: their bfloat16 CPU kernels are twice as slow."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:

            def forward(x: torch.Tensor, conv: nn.Conv2d = module) -> torch.Tensor:
                with torch.autocast("cpu", enabled=False):
                    return nn.Conv2d.forward(conv, x.float())

            module.forward = forward  # type: ignore[method-assign]


BUILD = {"resnet20": ResNet20, "mobilenetv4_small": mobilenetv4_small}


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    hits = 0
    for i in range(0, len(images), 500):
        x = normalise(images[i : i + 500]).contiguous(memory_format=torch.channels_last)
        hits += int((model(x).argmax(1) == labels[i : i + 500]).sum())
    return hits / len(images)


def train(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    train_x, train_y = load_split(args.data / "cifar10-train.zip")
    test_x, test_y = load_split(args.data / "cifar10-test.zip")
    model = BUILD[args.model]().to(memory_format=torch.channels_last)
    if args.bf16:
        keep_depthwise_float(model)
    if args.init:
        model.load_state_dict(torch.load(args.init)["model"])
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, momentum=0.9, nesterov=True,
    )
    forward = torch.compile(model) if args.compile else model  # twice as fast on a CPU
    steps = len(train_x) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * args.epochs, pct_start=args.warm_up, final_div_factor=1e3
    )
    generator = torch.Generator().manual_seed(args.seed)
    checkpoint = Path("/tmp") / f"{args.model}.{args.tag}.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        start = state["epoch"]
    for epoch in range(start, args.epochs):
        model.train()
        began, total = time.time(), 0.0
        order = torch.randperm(len(train_x), generator=generator)
        for step in range(steps):
            index = order[step * args.batch : (step + 1) * args.batch]
            x = normalise(augment(train_x[index], generator)).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                loss = F.cross_entropy(forward(x).float(), train_y[index], label_smoothing=args.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if args.probe and step == 30:
                print(f"{(time.time() - began) / 31 * steps:.0f} s per epoch", flush=True)
                raise SystemExit
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1,
                    "schedule": schedule.state_dict(), "generator": generator.get_state()}, checkpoint)
        top1 = accuracy(model, test_x[::5], test_y[::5])
        print(f"epoch {epoch + 1} loss {total / steps:.3f} top1(2000) {top1:.4f} {time.time() - began:.0f}s", flush=True)
    model.eval()
    print(json.dumps({"model": args.model, "test_top1_all_10000": accuracy(model, test_x, test_y)}), flush=True)
    return model


def export(model: nn.Module, path: Path) -> None:
    """Export with a dynamic batch and BatchNormalization kept as its own node (inference mode)."""
    fresh = BUILD[path.stem]()  # without the forward overrides of training
    fresh.load_state_dict(model.state_dict())
    model = fresh.eval()
    torch.onnx.export(
        model, (torch.zeros(2, 3, 32, 32),), str(path), dynamo=False, opset_version=17,
        input_names=["input"], output_names=["logits"], do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(BUILD))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the steps in which the rate rises")
    parser.add_argument("--init", type=Path, help="checkpoint whose weights start this phase")
    parser.add_argument("--tag", default="1", help="name of this phase, for its checkpoint in /tmp")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--probe", action="store_true", help="time 30 steps and stop")
    args = parser.parse_args()
    model = train(args)
    export(model, Path(__file__).with_name(f"{args.model}.onnx"))


if __name__ == "__main__":
    main()
