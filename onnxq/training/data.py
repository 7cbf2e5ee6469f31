"""Training data: batches of any dataset in random order, the same for the same seed and step.

Every random choice is made by a generator that is seeded by (seed, epoch) or (seed, step) alone, so that a
training that goes on from step 1,234 sees what it would have seen without the break.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from onnxq.data import Dataset
from passes.core.errors import DataError

__all__ = ["Batches", "augmented", "generator"]

Tensor = torch.Tensor
_DECODE = 256
# Samples are held as tensors where they take at most this; otherwise batches are decoded when they are
# needed.
HOST_BYTES = 4 << 30
_DEVICE_SHARE = 0.5


def generator(seed: int, stream: int, position: int) -> torch.Generator:
    """A generator for one epoch (stream 0), the augmentation of one step (1), probes (2) and the like."""
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, stream, position]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]) << 31 | int(mixed[1]) >> 1)


def augmented(images: Tensor, random: torch.Generator, *, crop: bool = True, flip: bool = True) -> Tensor:
    """Crops of the same size out of reflected borders of an eighth of the edge, and mirror images, per image.

    images: [N, C, H, W].
    """
    n, channels, height, width = images.shape
    if crop:
        pad = (max(height // 8, 1), max(width // 8, 1))
        padded = functional.pad(images, (pad[1], pad[1], pad[0], pad[0]), mode="reflect")
        dy, dx = (torch.randint(0, 2 * p + 1, (n, 1), generator=random) for p in pad)
    else:
        padded, dy, dx = images, torch.zeros(n, 1, dtype=torch.int64), torch.zeros(n, 1, dtype=torch.int64)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    if flip:
        turned = torch.rand(n, 1, generator=random) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    where = images.device
    index = torch.arange(n, device=where).view(n, 1, 1, 1)
    every = torch.arange(channels, device=where).view(1, channels, 1, 1)
    return padded[index, every, rows.view(n, 1, height, 1).to(where), columns.view(n, 1, 1, width).to(where)]


@dataclass
class Batches:
    """A dataset as batches of tensors on a device.

    crop, flip: augment in training, where samples are images [C, H, W]. Labels may be missing (None).
    """

    dataset: Dataset
    batch: int
    seed: int
    device: torch.device
    crop: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        if len(self.dataset) < self.batch:
            raise DataError(
                f"{self.dataset.name}: has {len(self.dataset)} samples, fewer than a batch of {self.batch}; "
                "use a smaller `batch`"
            )
        first = next(iter(self.dataset.batches(1, 0, 1)))
        if len(first.inputs) != 1:
            raise DataError(
                f"{self.dataset.name}: has {len(first.inputs)} inputs a sample; training takes networks "
                "with one"
            )
        self.input = next(iter(first.inputs))
        self.shape = first.inputs[self.input].shape[1:]
        self._held: tuple[Tensor, Tensor | None] | None = None
        self._order: tuple[int, Tensor] | None = None
        if 4 * len(self.dataset) * int(np.prod(self.shape)) <= HOST_BYTES:
            self._held = self._all()

    @property
    def steps(self) -> int:
        """Batches an epoch; what does not fill one is left out, another part in every epoch."""
        return len(self.dataset) // self.batch

    def _decoded(self, dataset: Dataset) -> tuple[Tensor, Tensor | None]:
        found = list(dataset.batches(_DECODE))
        try:
            images = np.concatenate([item.inputs[self.input] for item in found])
        except ValueError:
            raise DataError(f"{dataset.name}: samples differ in shape; crop them to one size") from None
        labels = [item.labels for item in found]
        known = (
            None
            if any(item is None for item in labels)
            else np.concatenate([i for i in labels if i is not None])
        )
        return torch.from_numpy(images), None if known is None else torch.from_numpy(known)

    def _all(self) -> tuple[Tensor, Tensor | None]:
        images, labels = self._decoded(self.dataset)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if images.numel() * 4 < _DEVICE_SHARE * free:
                images = images.to(self.device)
                labels = None if labels is None else labels.to(self.device)
        return images, labels

    def _take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._held is None:
            images, labels = self._decoded(self.dataset.subset([int(i) for i in index]))
        else:
            images, labels = self._held
            index = index.to(images.device)
            images, labels = images[index], None if labels is None else labels[index]
        return images.to(self.device), None if labels is None else labels.to(self.device)

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The batch of that step of the whole training, augmented."""
        epoch, within = divmod(step, self.steps)
        if self._order is None or self._order[0] != epoch:
            random = generator(self.seed, 0, epoch)
            self._order = epoch, torch.randperm(len(self.dataset), generator=random)
        order = self._order[1]
        images, labels = self._take(order[within * self.batch : (within + 1) * self.batch])
        if images.ndim == 4 and (self.crop or self.flip):
            images = augmented(images, generator(self.seed, 1, step), crop=self.crop, flip=self.flip)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels

    def plain(self, count: int, position: int = 0) -> tuple[Tensor, Tensor | None]:
        """`count` samples drawn without augmentation; another `position`, another draw."""
        random = generator(self.seed, 2, position)
        order = torch.randperm(len(self.dataset), generator=random)[:count]
        return self._take(order)

    def in_order(self, size: int, limit: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All samples, or `limit` at even distances (folders are sorted by class), in their order."""
        total = len(self.dataset)
        chosen = torch.arange(total)
        if 0 < limit < total:
            chosen = torch.arange(limit) * total // limit
        for start in range(0, len(chosen), size):
            yield self._take(chosen[start : start + size])
