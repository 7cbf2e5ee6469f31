"""Fine-tune the ImageNet EfficientNet-Lite0 on CIFAR-10 and store its logits for distillation.

    python models/teacher.py --data ../shared/data --weights ../shared/models/efficientnet_lite0.onnx

Writes teacher.TAG.pt (a checkpoint after every epoch, from which it resumes) and logits.npz to
--out. The logits are those of fixed random views (crop and flip) of every training image, in the
order of train.load_split; `train.py --teacher logits.npz` learns from them. With --ensemble, the
networks trained so far make half of each logit. The files of view logits (logits.NAME.npz) are
reused: delete them after a change of weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it
from train import augment, load_split, normalise, register_torchvision

# Edge length to which the 32 pixels are enlarged for the logits.
SIZE = 96
# Stages whose ImageNet weights stay: edges and textures are the same, and no gradient is needed.
FROZEN = 3
SEED = 0


def build(weights: Path) -> nn.Module:
    """timm's EfficientNet-Lite0 with a new ten-class head and the other initializers of the file."""
    register_torchvision()
    import timm

    model = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    source = [numpy_helper.to_array(t) for t in onnx.load(weights).graph.initializer]
    arrays = iter([a for a in source if a.ndim in (1, 4) and a.dtype == np.float32])
    # Both lay their tensors out in the order of the network, under different names.
    state = model.state_dict()
    for name, value in state.items():
        if "num_batches_tracked" not in name and not name.startswith("classifier"):
            array = next(arrays)
            if array.shape != tuple(value.shape):
                raise ValueError(f"{name}: the file has {array.shape}, the network {tuple(value.shape)}")
            state[name] = torch.from_numpy(array.copy())
    model.load_state_dict(state)
    nn.init.zeros_(model.classifier.weight)  # timm's initial logits are large and would have to be unlearnt
    return model.to(memory_format=torch.channels_last)


def keep_depthwise_float(model: nn.Module) -> None:
    """As in train.py, but through the layer's own forward, which pads like TensorFlow."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:

            def forward(x: torch.Tensor, conv: nn.Conv2d = module) -> torch.Tensor:
                with torch.autocast("cpu", enabled=False):
                    return type(conv).forward(conv, x.float())

            module.forward = forward  # type: ignore[method-assign]


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
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    model.eval()
    parts = []
    for i in range(0, len(images), 250):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(logits(model, prepare(images[i : i + 250], SIZE)).float())
    return torch.cat(parts)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    modules = [*model.blocks[FROZEN:], model.conv_head, model.bn2, model.classifier]
    return [p for module in modules for p in module.parameters()]


def fine_tune(model: nn.Module, args: argparse.Namespace) -> None:
    train_x, train_y = load_split(args.data / "cifar10-train.zip")
    test_x, test_y = load_split(args.data / "cifar10-test.zip")
    steps = len(train_x) // args.batch
    optimizer = torch.optim.AdamW(trainable(model), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * len(args.sizes), pct_start=0.15
    )
    generator = torch.Generator().manual_seed(SEED)
    checkpoint = args.out / f"teacher.{args.tag}.pt"
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
        order = torch.randperm(len(train_x), generator=generator)[: steps * args.batch]
        for step, index in enumerate(order.split(args.batch)):
            x = prepare(augment(train_x[index], generator), args.sizes[epoch])
            with torch.autocast("cpu", dtype=torch.bfloat16):
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
        hits = predict(model, test_x[::5]).argmax(1) == test_y[::5]
        print(
            f"epoch {epoch + 1} top1(2000) {hits.float().mean():.4f} {time.time() - began:.0f}s", flush=True
        )


class Deployed(nn.Module):
    """Pixels in, logits out, as it is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return logits(self.model, prepare(images, SIZE))


def session(model: nn.Module, args: argparse.Namespace) -> ort.InferenceSession:
    """ONNX Runtime folds BatchNorm and is more than twice as fast as the training network."""
    fresh = build(args.weights)
    fresh.load_state_dict(model.state_dict())
    path = args.out / "teacher.onnx"
    torch.onnx.export(
        Deployed(fresh).eval(),
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
    )
    return open_session(path, args)


def open_session(path: Path, args: argparse.Namespace) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def view_logits(runtime: ort.InferenceSession, name: str, args: argparse.Namespace) -> torch.Tensor:
    """Mean logits over the views: a student's random crop shows the same object a few pixels away."""
    path = args.out / f"logits.{name}.npz"
    if path.exists():
        return torch.from_numpy(np.load(path)["logits"])
    images, labels = load_split(args.data / "cifar10-train.zip")
    generator = torch.Generator().manual_seed(SEED + 1)
    total = torch.zeros(len(images), 10)
    for view in range(args.views):
        pixels = augment(images, generator)
        # The teacher preprocesses pixels itself; a student takes what `cifar` makes of them.
        parts = (pixels if name == "teacher" else normalise(pixels)).split(16)
        total += torch.cat([torch.from_numpy(runtime.run(None, {"input": x.numpy()})[0]) for x in parts])
        hits = (total.argmax(1) == labels).float().mean()
        print(f"{name}, view {view + 1}: the mean's training top-1 {hits:.4f}", flush=True)
    np.savez(path, logits=(total / args.views).numpy())
    return total / args.views


def store_logits(model: nn.Module, args: argparse.Namespace) -> None:
    """Logits of the teacher, or of an ensemble in which it has half of the weight."""
    mean = view_logits(session(model, args), "teacher", args)
    if args.ensemble:
        others = [view_logits(open_session(path, args), path.stem, args) for path in args.ensemble]
        mean = (mean + sum(others) / len(others)) / 2
    np.savez(args.out / "logits.npz", logits=mean.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/models/efficientnet_lite0.onnx"))
    parser.add_argument("--out", type=Path, default=Path("/tmp"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96, 96], help="edge length of each epoch"
    )
    parser.add_argument("--init", type=Path, help="checkpoint whose weights start this phase")
    parser.add_argument("--tag", default="1", help="name of this phase, for its checkpoint")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--ensemble", type=Path, nargs="*", help="exported students that teach along")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    model = build(args.weights)
    keep_depthwise_float(model)
    if args.init:
        model.load_state_dict(torch.load(args.init)["model"])
    fine_tune(model, args)
    store_logits(model, args)


if __name__ == "__main__":
    main()
