"""Codes of a block's layers learned together (AdaRound's variables, arXiv:2004.10568, on BRECQ's target,
arXiv:2102.05426), in torch.

Every code c of a layer-wise rounding Q may stay or move one step towards the weight W, softly at first:

    Q(V) = Q + sign(W - Q) scale h(V),   h(V) = clip(sigmoid(V) 1.2 - 0.1, 0, 1),   h_0 = |W - Q| / scale
    minimise  a E |block(x_q; Q(V), b) - block(x_f; W)|^2 + sum (1 - |2 h(V) - 1|^beta)

by Adam on chunks of calibration images, its rates falling, beta annealed from high to low. x_f, x_q: the
block's input in the float network and in the network as rounded so far. Biases b are learned along. a makes
the error of the layer-wise rounding 1e-5 for each weight: with more, weights are undecided at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxq.rounding.replay import rounded_names
from onnxq.training.network import Network
from passes.formats import format_of
from passes.graph.model import Model
from passes.policy import Scheme
from passes.rounding.learned import GAMMA, ZETA, Learning, annealed
from passes.rounding.task import RoundedLayer, RoundingTask

__all__ = ["learn_block", "learned_alike"]

Tensor = torch.Tensor
Arrays = Sequence[npt.NDArray[np.float32]]
# Chosen on calibration images of ResNet-20, a part of them held out (benchmarks/RESULTS.md).
_LEARNING, _BIAS_RATE = Learning(rate=0.1), 1e-3
_EACH = 1e-5
_LAST_RATE = 0.1


def learned_alike(scheme: Scheme) -> bool:
    """Whether a code of the scheme has neighbours a step away; a trellis has none."""
    return format_of(scheme).learnable


class _Soft(nn.Module):
    """One weight between its codes and their neighbours. Stands in for the weight in a Network."""

    def __init__(self, task: RoundingTask, held: RoundedLayer) -> None:
        super().__init__()
        rows, axis = held.encoded.rows, task.layer.channel_axis
        self.codes = rows.codes.astype(np.float64)
        columns = self.codes.shape[1]
        step, zero = (
            np.repeat(item.astype(np.float64), rows.group_size, axis=1)[:, :columns]
            for item in (rows.scale, rows.zero_point)
        )
        low, high = format_of(task.scheme).code_range(task.scheme)
        moved = np.moveaxis(np.asarray(task.array, np.float64), axis, 0)
        value = (self.codes - zero) * step
        lack = moved.reshape(self.codes.shape) - value
        self.toward = np.clip(self.codes + np.sign(lack), low, high) - self.codes
        share = np.clip(np.abs(lack) / step, 0.01, 0.99)
        self.shape, self.axis = moved.shape, axis
        self.value, self.step = _single(value), _single(self.toward * step)
        self.free = _single(self.toward != 0)
        self.v = nn.Parameter(_single(-np.log((ZETA - GAMMA) / (share - GAMMA) - 1)))

    def h(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def forward(self, _weight: Tensor) -> Tensor:
        soft = torch.addcmul(self.value, self.step, self.h())
        return soft.reshape(self.shape).movedim(0, self.axis)

    def undecided(self, beta: float) -> Tensor:
        return (self.free * (1 - (2 * self.h() - 1).abs() ** beta)).sum()

    @torch.no_grad()
    def settled(self) -> npt.NDArray[np.float64]:
        """Codes [C, K]."""
        found: npt.NDArray[np.float64] = self.codes + self.toward * (self.h() >= 0.5).numpy()
        return found


def _single(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def learn_block(
    part: Model,
    layers: Sequence[tuple[RoundingTask, RoundedLayer]],
    chunk: Callable[[int], tuple[Arrays, Arrays]],
    chunks: Sequence[int],
    error: float,
    steps: int,
    seed: int,
    threads: int | None = None,
) -> list[tuple[RoundingTask, RoundedLayer]]:
    """The layers with codes and biases learned.

    part: the block with the layers in it (Replay.part). chunk: of a number in `chunks` what the block reads
    in the rounded network, and what it should write. error: mean squared, of the layers as they are.
    Raises UnsupportedModelError for what torch does not know here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    network = Network(part).eval().requires_grad_(False)
    soft = {task.output: _Soft(task, held) for task, held in layers if learned_alike(task.scheme)}
    groups = [{"params": [item.v for item in soft.values()], "lr": _LEARNING.rate}]
    for task, held in layers:
        weight, bias = rounded_names(task)
        if task.output in soft:
            network.quantize_weight(weight, soft[task.output])
        if held.bias is not None:
            own = network.parameter_of(bias).requires_grad_(True)
            groups.append({"params": [own], "lr": _BIAS_RATE * float(own.detach().abs().mean())})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: max(1 - at / steps, _LAST_RATE))
    scale = _EACH * sum(item.v.numel() for item in soft.values()) / max(error, 1e-30)
    generator = np.random.default_rng(seed)
    for at in range(steps):
        reads, wanted = chunk(int(generator.choice(chunks)))
        found = network(*map(torch.from_numpy, reads))
        loss = scale * _squared(found if isinstance(found, tuple) else (found,), wanted)
        beta = annealed(at / steps, _LEARNING)
        if beta:
            loss = loss + sum(item.undecided(beta) for item in soft.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return [(task, _settled(task, held, soft.get(task.output), network)) for task, held in layers]


def _squared(found: Iterable[Tensor], wanted: Arrays) -> Tensor:
    parts = [
        (one - torch.from_numpy(other)).square().mean() for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(parts).sum()


def _settled(task: RoundingTask, held: RoundedLayer, soft: _Soft | None, network: Network) -> RoundedLayer:
    bias = held.bias
    if bias is not None:
        bias = network.parameter_of(rounded_names(task)[1]).detach().numpy().astype(np.float64)
    encoded = (
        held.encoded
        if soft is None
        else format_of(task.scheme).recoded(held.encoded, task.array, task.scheme, soft.settled())
    )
    return RoundedLayer(encoded, bias, held.note)
