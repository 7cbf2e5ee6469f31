"""The loop: steps, learning rate, checkpoints at any step, a log, and the float teacher.

A checkpoint holds the network, the optimizer, the method's state and the log; random choices depend on the
seed and the step alone (onnxq/training/data.py). Killed at any moment, a training goes on from its last
checkpoint and ends as it would have ended.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from onnxq.files import atomic_write, canonical_json, make_folder
from onnxq.training.data import Batches
from onnxq.training.method import Method
from onnxq.training.network import Network
from onnxq.training.objective import Objective
from passes.core.errors import DataError, ResumeError, UserError

__all__ = ["Event", "Settings", "Trainer", "accuracy"]

Tensor = torch.Tensor
CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """How to train.

    lr: peak of the learning rate, reached after `warm_up` (share of the steps), then a cosine down to 0.
    decay: of the layers' weights alone. precision: of the convolutions and products. checkpoint_s: seconds
    between checkpoints. stop_s: seconds after which to stop at a checkpoint, 0 for none (the training is
    then to be continued). record: steps between lines of the log, 0 for once an epoch.
    """

    epochs: float = 12.0
    lr: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-4
    warm_up: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    seed: int = 0
    checkpoint_s: float = 60.0
    stop_s: float = 0.0
    record: int = 0
    validate: int = 2000


@dataclass(frozen=True)
class Event:
    """Progress. accuracy: on validation data, or of the last training batches; None before the first."""

    step: int
    total: int
    loss: float
    accuracy: float | None
    status: Mapping[str, Any] = field(default_factory=dict)


def accuracy(network: torch.nn.Module, batches: Batches, limit: int = 0, size: int = 500) -> float:
    """Top-1 in inference mode and float32, over all samples or `limit` of them. Raises DataError without
    labels."""
    hits = count = 0
    training = network.training
    network.eval()
    with torch.no_grad():
        for images, labels in batches.in_order(size, limit):
            if labels is None:
                raise DataError(f"{batches.dataset.name}: has no labels to measure accuracy with; add labels")
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            hits += int((network(images).argmax(1) == labels).sum())
            count += len(labels)
    network.train(training)
    return hits / count


class Trainer:
    """One training of one network by one method.

    teacher: the float network, for distillation, or None. folder: for checkpoint and log, or None to keep
    nothing. identity: what a checkpoint must agree with to be continued.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        data: Batches,
        objective: Objective,
        settings: Settings,
        *,
        teacher: Network | None = None,
        validation: Batches | None = None,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        progress: Callable[[Event], None] | None = None,
    ) -> None:
        self.network, self.method, self.data, self.objective = network, method, data, objective
        self.settings, self.teacher, self.validation, self.folder = settings, teacher, validation, folder
        self.identity, self.progress = dict(identity or {}), progress
        self.total = max(round(settings.epochs * data.steps), 1)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.spent_s = self.session_s = 0.0
        self.optimizer = self._optimizer()
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        # What samples look like decides the plan; a compiled graph must find it made.
        example, _ = data.at(0)
        network.specialise(example)
        self._forward: Callable[..., Any] = network
        self._soft: Callable[..., Any] | None = None
        if teacher is not None:
            teacher.eval()
            teacher.specialise(example)
            self._soft = teacher
        if settings.compile:
            self._forward = torch.compile(network, dynamic=False)
            self._soft = torch.compile(teacher, dynamic=False) if teacher is not None else None

    def _optimizer(self) -> torch.optim.Optimizer:
        chosen = {id(self.network.parameter_of(layer.weight)) for layer in self.method.layers}
        every = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in every if id(p) in chosen], "weight_decay": self.settings.decay},
            {"params": [p for p in every if id(p) not in chosen], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.settings.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.settings.lr)
        return torch.optim.SGD(groups, lr=self.settings.lr, momentum=self.settings.momentum, nesterov=True)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear rise, then half a cosine."""
        share, warm = step / self.total, self.settings.warm_up
        if share < warm:
            return self.settings.lr * max(share / warm, 0.01)
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))

    def _autocast(self) -> Any:
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.data.device.type, dtype=torch.bfloat16)

    def _soft_logits(self, images: Tensor) -> Tensor | None:
        if self._soft is None:
            return None
        with torch.no_grad(), self._autocast():
            logits: Tensor = self._soft(images)
        return logits

    def loss(self, values: Mapping[str, Tensor] | None, step: int) -> Tensor:
        """Loss on a quarter of the batch of a step, statistics of BatchNormalization held; twice
        differentiable. A quarter, so that second derivatives take no more memory than a step does."""
        images, labels = self.data.at(step)
        part = -(-len(images) // 4)
        images, labels = images[:part], None if labels is None else labels[:part]
        soft = None
        if self.teacher is not None:
            with torch.no_grad():
                soft = self.teacher(images)
        training = self.network.training
        self.network.eval()
        found = self.objective(self.network(images, values=values), labels, soft)
        self.network.train(training)
        return found

    def _one(self) -> None:
        self.method.begin_step(self.step)
        images, labels = self.data.at(self.step)
        soft = self._soft_logits(images)
        with self._autocast():
            logits = self._forward(images)
        loss = self.objective(logits, labels, soft)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.method.add_gradients(self.step)
        self.optimizer.step()
        self._losses.append(loss.detach())
        if labels is not None:
            self._hits.append((logits.detach().argmax(1) == labels).float().mean())

    def run(self) -> bool:
        """Train to the end, or until `stop_s`; whether the end was reached.

        Raises ResumeError for a checkpoint of another training, UserError for a loss that is no number.
        """
        self._resume()
        if not self.history:
            self.history.append({"step": 0, "epoch": 0.0, **self.method.status()})
        self.network.train()
        began = saved = time.monotonic()
        before = self.spent_s
        while self.step < self.total:
            self._one()
            changed = self.method.end_step(self.step, self.loss)
            self.step += 1
            now = time.monotonic()
            self.session_s = now - began
            self.spent_s = before + self.session_s
            every = self.settings.record or self.data.steps
            if changed or self.step % every == 0 or self.step == self.total:
                self._record(self.step % every == 0 or self.step == self.total)
            elif self.progress is not None and self.step % 10 == 0:
                self._tell(False)
            stop = bool(self.settings.stop_s) and self.session_s > self.settings.stop_s
            if now - saved > self.settings.checkpoint_s or stop or self.step == self.total:
                self.save()
                saved = now
            if stop and self.step < self.total:
                return False
        return True

    def _mean_loss(self) -> float:
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        if self._losses and not math.isfinite(loss):
            raise UserError(
                f"{self.network.model.name}: the loss is {loss} at step {self.step}; use a smaller `lr`"
            )
        return loss

    def _tell(self, status: bool) -> None:
        if self.progress is None:
            return
        last = self.history[-1].get("accuracy") if self.history else None
        found = self.method.status() if status else {}
        recent = float(self._losses[-1]) if self._losses else math.nan
        self.progress(Event(self.step, self.total, recent, last, found))

    def _record(self, validate: bool) -> None:
        """A line of the log: loss and training accuracy since the last one, validation, the method's
        numbers."""
        entry: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.data.steps, 4),
            "loss": self._mean_loss(),
            "seconds": round(self.spent_s, 1),
            **self.method.status(),
        }
        if self._hits:
            entry["training_accuracy"] = float(torch.stack(self._hits).mean())
        if validate and self.validation is not None:
            entry["accuracy"] = accuracy(self.network, self.validation, self.settings.validate)
        elif self.history and "accuracy" in self.history[-1]:
            entry["accuracy"] = self.history[-1]["accuracy"]
        self._losses, self._hits = [], []
        self.history.append(entry)
        if self.progress is not None:
            shown = entry.get("accuracy", entry.get("training_accuracy"))
            self.progress(Event(self.step, self.total, entry["loss"], shown, self.method.status()))

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write checkpoint and log, each whole or not at all."""
        if self.folder is None:
            return
        make_folder(self.folder)
        state = {
            "identity": self.identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state(),
            "history": self.history,
            "losses": self._losses,
            "hits": self._hits,
            "spent_s": self.spent_s,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self.folder / CHECKPOINT, buffer.getvalue())
        atomic_write(self.folder / LOG, "".join(canonical_json(entry) + "\n" for entry in self.history))

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT if self.folder is not None else None
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.data.device, weights_only=True)
        except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError):
            raise ResumeError(f"{path}: is no checkpoint, or is damaged; delete it to start anew") from None
        try:
            differing = sorted(_differences(state["identity"], self.identity))
        except (KeyError, TypeError, AttributeError):
            raise ResumeError(f"{path}: is not a checkpoint of onnxq; delete it to start anew") from None
        if differing:
            key, old, new = differing[0]
            raise ResumeError(
                f"{path}: belongs to another training: {key} was {old} and is {new} now; delete the "
                "folder to start "
                "anew, or give another -o"
            )
        try:
            self.step, self.history, self.spent_s = state["step"], state["history"], state["spent_s"]
            self.method.restore(state["method"])
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._losses, self._hits = state["losses"], state["hits"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ResumeError(f"{path}: is damaged ({reason}); delete it to start anew") from None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in {*old, *new}:
        if old.get(key) != new.get(key):
            yield key, str(old.get(key)), str(new.get(key))
