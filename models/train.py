"""Train the two shipped CIFAR-10 networks and export them to ONNX with BatchNorm unfolded.

    python models/train.py resnet20 --bf16 --epochs 24                  # from the labels alone
    python models/teacher.py lite0 --out /tmp                           # writes /tmp/logits.lite0.npz
    python models/train.py resnet20 --bf16 --teacher /tmp/logits.lite0.npz --init models/resnet20.onnx --tag 2
    python models/train.py resnet20 --device cuda --bf16 --compile --batch 256 ...   # minutes
    torchrun --nproc-per-node 2 models/train.py resnet20 --threads 1 ...   # two processes, weights averaged now and then

Needs torch and timm (not dependencies of onnxq), and the CIFAR-10 JPEG zips with one folder
per class. Training is resumable: a checkpoint is written after every epoch to /tmp. The cards
(resnet20.md, mobilenetv4_small.md) have the commands that made the shipped weights.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import math
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.distributed as dist
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torch.nn import functional as F

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The `cifar` preset of onnxq: (RGB/255 - mean) / std.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load_split(path: Path, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
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
        return torch.from_numpy(data["x"]).to(device), torch.from_numpy(data["y"]).long().to(device)


def normalise(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([MEAN, STD], device=images.device).view(2, 1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def draw_views(n: int, generator: torch.Generator) -> torch.Tensor:
    """Random views, uint8 [n, 3]: offset of the crop in rows and columns (0 to 8, 4 is the middle), and flip."""
    where = {"generator": generator, "device": generator.device}
    offsets = [torch.randint(0, 9, (n,), **where) for _ in range(2)]
    return torch.stack([*offsets, torch.rand(n, **where) < 0.5], 1).to(torch.uint8)


def crop(images: torch.Tensor, views: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Each image from its view: `size` pixels around the same middle, of 40 where 4 on each side are reflected."""
    n, pad = len(images), (size - 24) // 2
    padded = F.pad(images.float(), (pad, pad, pad, pad), mode="reflect")
    dy, dx, flip = views.long().view(n, 3, 1).unbind(1)
    pixels = torch.arange(size, device=images.device)
    rows = (dy + pixels).view(n, 1, size, 1)
    columns = dx + pixels
    columns = torch.where(flip.bool(), columns.flip(1), columns).view(n, 1, 1, size)
    index = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    return padded[index, torch.arange(3, device=images.device).view(1, 3, 1, 1), rows, columns]


def augment(images: torch.Tensor, generator: torch.Generator, size: int = 32) -> torch.Tensor:
    """Random crop with 8 pixels of play (for 32 out of 4 reflected pixels) and random flip, per image."""
    return crop(images, draw_views(len(images), generator), size)


class Teacher:
    """Mean logits of some networks for a few views of each training image; a student sees what they saw."""

    def __init__(self, paths: list[Path], device: str = "cpu") -> None:
        files = [np.load(path) for path in paths]
        self.views = torch.from_numpy(files[0]["views"]).to(device)
        if not all((file["views"] == files[0]["views"]).all() for file in files):
            raise ValueError("the teachers saw different views: run teacher.py with the same --views")
        every = [torch.from_numpy(file["logits"]) for file in files]
        self.logits = torch.stack(every).mean(0, dtype=torch.float32).to(device)

    def draw(
        self, index: torch.Tensor, jitter: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views uint8 [n, 3], each a stored one moved by at most `jitter` pixels, and its logits [n, 10]."""
        where = {"generator": generator, "device": generator.device}
        which = torch.randint(0, len(self.views), (len(index),), **where)
        views = self.views[which, index].int()
        views[:, :2] += torch.randint(-jitter, jitter + 1, (len(index), 2), **where)
        views[:, :2].clamp_(0, 8)
        return views.to(torch.uint8), self.logits[which, index]


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


@functools.cache
def register_torchvision() -> torch.library.Library | None:
    """timm imports torchvision, whose CUDA wheel has no operators under a CPU torch: declare two, unused."""
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module("torchvision")
        return None
    stub = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        stub.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return stub  # the cache keeps it alive, and with it the declarations


def mobilenetv4_small() -> nn.Module:
    """timm's MobileNetV4-Conv-Small-0.5 with CIFAR strides: stem and first stage keep 32 x 32.

    Every UIB block, its 3x3 and 5x5 depthwise kernels, the head and ReLU are timm's.
    """
    register_torchvision()
    import timm

    model = timm.create_model("mobilenetv4_conv_small_050", num_classes=10)
    model.conv_stem.stride = (1, 1)
    model.blocks[0][0].conv.stride = (1, 1)
    return model


def keep_depthwise_float(model: nn.Module) -> None:
    """Run depthwise convolutions outside autocast on CPUs: their bfloat16 kernels are twice as slow there."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:

            def forward(x: torch.Tensor, conv: nn.Conv2d = module) -> torch.Tensor:
                with torch.autocast("cpu", enabled=False):
                    return type(conv).forward(conv, x.float())  # timm's may pad like TensorFlow

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


def load_onnx(model: nn.Module, path: Path) -> None:
    """Weights and BatchNorm statistics of a file that `export` wrote: its initializers keep their names."""
    graph = onnx.load(path).graph
    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    for node in graph.node:  # the exporter stores equal tensors once
        if node.op_type == "Identity" and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]]
    model.load_state_dict({n: arrays.get(n, v) for n, v in model.state_dict().items() if n in arrays or v.ndim == 0})


def learning_rate(progress: float, args: argparse.Namespace) -> float:
    """Linear rise, then half a cosine down to --floor, which is reached where the averaging begins."""
    warm, end = args.warm_up, 1 - args.average_share
    if progress < warm:
        return args.lr * max(progress / warm, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * min((progress - warm) / (end - warm), 1.0)))
    return args.floor + (args.lr - args.floor) * cosine


def world() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@torch.no_grad()
def synchronise(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Mean weights, statistics and momentum of all processes (local SGD, Stich 2019, algorithm 1)."""
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    tensors = [t for t in (*model.state_dict().values(), *momenta) if t.is_floating_point()]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    means = (flat / dist.get_world_size()).split([t.numel() for t in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view_as(tensor))


class Average:
    """Equal mean of the weights seen at the end of the schedule (SWA, Izmailov et al. 2018, algorithm 1)."""

    def __init__(self) -> None:
        self.count, self.weights = 0, {}

    def add(self, model: nn.Module) -> None:
        self.count += 1
        for name, value in model.named_parameters():
            mean = self.weights.setdefault(name, torch.zeros_like(value, requires_grad=False))
            mean += (value.detach() - mean) / self.count

    @torch.no_grad()
    def store(self, model: nn.Module, images: torch.Tensor, generator: torch.Generator) -> None:
        """Write the mean into `model` and measure its BatchNorm statistics over all training images."""
        model.load_state_dict(self.weights, strict=False)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
        model.train()
        order = torch.randperm(len(images), generator=generator, device=generator.device)
        for index in order.split(500):
            model(normalise(augment(images[index], generator)).contiguous(memory_format=torch.channels_last))
        for norm in norms:
            norm.momentum = 0.1


class Progress:
    """Share of the training that is done: of the epochs, or of the wall-clock time where --minutes is given."""

    def __init__(self, args: argparse.Namespace, steps: int) -> None:
        self.total = args.minutes * 60 if args.minutes else args.epochs * steps
        self.timed, self.done, self.since = bool(args.minutes), 0.0, time.time()

    def step(self) -> None:
        now = time.time()
        self.done += now - self.since if self.timed else 1
        self.since = now

    def share(self) -> float:
        return self.done / self.total


def objective(logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor | None, args: argparse.Namespace) -> torch.Tensor:
    """Cross-entropy, or mostly the divergence from the teacher's softened distribution (Hinton et al. 2015)."""
    hard = F.cross_entropy(logits, labels, label_smoothing=0.0 if soft is not None else args.smoothing)
    if soft is None:
        return hard
    t = args.temperature
    divergence = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(soft / t, 1), reduction="batchmean")
    return args.hard * hard + (1 - args.hard) * t * t * divergence


def build(args: argparse.Namespace) -> nn.Module:
    model = BUILD[args.model]().to(args.device, memory_format=torch.channels_last)
    if args.bf16 and args.device == "cpu":
        keep_depthwise_float(model)
    if args.init and args.init.suffix == ".onnx":
        load_onnx(model, args.init)
    elif args.init:
        model.load_state_dict(torch.load(args.init, map_location=args.device)["model"])
    return model


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decay, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr, momentum=0.9, nesterov=True,
    )


def save(path: Path, **state: object) -> None:
    """As a whole or not at all: a stopped run resumes from the epoch before."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def train(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rank, processes = world()
    if processes > 1:
        dist.init_process_group("gloo")
    torch.backends.cudnn.benchmark = True
    train_x, train_y = load_split(args.data / "cifar10-train.zip", args.device)
    test_x, test_y = load_split(args.data / "cifar10-test.zip", args.device)
    teacher = Teacher(args.teacher, args.device) if args.teacher else None
    model = build(args)
    optimizer = make_optimizer(model, args)
    # A step is so short on a GPU that launching its kernels one by one would take longer than they do.
    mode = None if args.device == "cpu" else "reduce-overhead"
    forward = torch.compile(model, dynamic=False, mode=mode) if args.compile else model
    steps = len(train_x) // args.batch // processes
    progress = Progress(args, steps)
    shuffle = torch.Generator().manual_seed(args.seed)
    views = torch.Generator(args.device).manual_seed(args.seed + 1000 * (rank + 1))
    average = Average()
    checkpoint = Path("/tmp") / f"{args.model}.{args.tag}{f'.{rank}' if rank else ''}.pt"
    epoch = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        shuffle.set_state(state["shuffle"])
        views.set_state(state["views"])
        average.count, average.weights = state["average"]
        epoch, progress.done = state["epoch"], state["done"]
    while progress.share() < 1:
        model.train()
        began, total = time.time(), torch.zeros((), device=args.device)
        size = args.small if progress.share() < args.small_share else 32
        order = torch.randperm(len(train_x), generator=shuffle)[rank::processes].to(args.device)
        for step in range(steps):
            index = order[step * args.batch : (step + 1) * args.batch]
            if teacher:
                seen, soft = teacher.draw(index, args.jitter, views)
            else:
                seen, soft = draw_views(len(index), views), None
            x = normalise(crop(train_x[index], seen, size)).contiguous(memory_format=torch.channels_last)
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
                logits = forward(x)
            loss = objective(logits.float(), train_y[index], soft, args)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress.share(), args)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.step()
            total += loss.detach()
            if (step + 1) % args.sync == 0 or step + 1 == steps:
                if processes > 1:
                    synchronise(model, optimizer)
                if progress.share() > 1 - args.average_share:
                    average.add(model)
            if args.probe and step == 30:
                print(f"{(time.time() - began) / 31 * steps:.0f} s per epoch", flush=True)
                raise SystemExit
            if progress.share() >= 1:
                break
        epoch += 1
        save(checkpoint, model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch, done=progress.done,
             shuffle=shuffle.get_state(), views=views.get_state(), average=(average.count, average.weights))
        if rank == 0:
            top1 = accuracy(model, test_x[::5], test_y[::5])
            print(f"epoch {epoch} ({progress.share():.1%}) size {size} loss {total.item() / (step + 1):.3f} "
                  f"top1(2000) {top1:.4f} {time.time() - began:.0f}s", flush=True)
    if rank:
        raise SystemExit
    last = accuracy(model, test_x, test_y)
    if average.count:
        average.store(model, train_x, views)
    model.eval()
    print(json.dumps({"model": args.model, "averaged": average.count, "last_top1_all_10000": last,
                      "test_top1_all_10000": accuracy(model, test_x, test_y)}), flush=True)
    return model


def export(model: nn.Module, path: Path) -> None:
    """Export with a dynamic batch and BatchNormalization kept as its own node (inference mode)."""
    fresh = BUILD[path.stem]()  # without the forward overrides of training
    fresh.load_state_dict(model.state_dict())  # also takes them to the CPU
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
    parser.add_argument("--minutes", type=float, help="length in wall-clock time instead of --epochs; the schedule follows the clock")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the steps in which the rate rises")
    parser.add_argument("--average-share", type=float, default=0.0, help="share of the steps at its end over which weights are averaged")
    parser.add_argument("--floor", type=float, default=0.0, help="learning rate while weights are averaged")
    parser.add_argument("--sync", type=int, default=48, help="steps between two averages of weights")
    parser.add_argument("--init", type=Path, help="checkpoint (.pt) or exported network (.onnx) whose weights start this phase")
    parser.add_argument("--tag", default="1", help="name of this phase, for its checkpoint in /tmp")
    parser.add_argument("--teacher", type=Path, nargs="+", help="logits.NET.npz of teacher.py, to learn from instead of from labels alone")
    parser.add_argument("--jitter", type=int, default=0, help="pixels by which the student's view may lie beside its teachers'")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--hard", type=float, default=0.1, help="share of the labels' cross-entropy beside the teacher")
    parser.add_argument("--small", type=int, default=24, help="edge of the crops in the first phase")
    parser.add_argument("--small-share", type=float, default=0.0, help="length of that phase, which costs half per image")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the exported network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--probe", action="store_true", help="time 30 steps and stop")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(args)
    export(model, args.out / f"{args.model}.onnx")


if __name__ == "__main__":
    main()
