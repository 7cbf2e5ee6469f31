"""SMPQ's supernet: every layer can run at every bit-width, all with the same weights (METHODS.md, SMPQ).

Weight steps on training data run at widths that are drawn anew for every step and layer; each width of a
layer has a step size of its own (LSQ). At set steps alpha is updated on held-out data: permutations of the
players (layer, width) of the upgrade game (upgrade_game.py), value V = -loss of the supernet at
the coalition's widths, a walk being truncated where the loss has risen above `ceiling` times the start's;
psi is the mean over the walks that saw a player, then

    q = beta q + lambda psi / |psi|,   alpha = alpha + xi q / |q|.

BatchNormalization takes the statistics of the batch when a coalition is valued, since stored ones are of
another mixture of widths. Weights are searched; activations keep one scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxq.allocation.ilp import ilp
from onnxq.allocation.problem import Assignment, Problem
from onnxq.allocation.shapley import BETA, LAMBDA, XI
from onnxq.training.activations import Activations, Kind
from onnxq.training.data import Batches, generator
from onnxq.training.method import Loss, Method, Result
from onnxq.training.network import Network
from onnxq.training.objective import Objective
from onnxq.training.quantizers import fitted_step, learned_step
from onnxq.training.upgrade_game import Game, permutations, play
from passes.graph.layers import macs
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme

__all__ = ["SearchOptions", "Supernet", "WidthQuantizer", "discretized"]

Tensor = torch.Tensor
Table = npt.NDArray[np.float64]
_HUGE = 1 << 50


class WidthQuantizer(nn.Module):
    """One weight at one of several widths, one step a tensor and width; `choice` is a buffer, so that a
    compiled graph serves all widths."""

    def __init__(self, weight: Tensor, bits: Sequence[int]) -> None:
        super().__init__()
        self.bits = tuple(bits)
        first = [fitted_step(weight, width) for width in bits]
        self.steps = nn.Parameter(torch.tensor(first, dtype=weight.dtype))
        tops = torch.tensor([float(2 ** (width - 1) - 1) for width in bits], dtype=weight.dtype)
        self.register_buffer("tops", tops)
        self.register_buffer("factors", 1 / torch.sqrt(weight.numel() * tops))
        self.register_buffer("choice", torch.tensor([len(bits) - 1]))
        self.tops: Tensor
        self.factors: Tensor
        self.choice: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        step, factor, top = (
            item.index_select(0, self.choice) for item in (self.steps, self.factors, self.tops)
        )
        return learned_step(weight, step, -top - 1, top, factor)


@dataclass(frozen=True)
class SearchOptions:
    """bits: widths, in rising order. activations: of all layers. total: steps of the supernet's training.
    updates: of alpha in it. permutations: an update. samples: of held-out data a value is taken on."""

    bits: tuple[int, ...]
    activations: Scheme
    total: int
    updates: int = 4
    permutations: int = 2
    samples: int = 256
    ceiling: float = 3.0
    start: int = 0
    seed: int = 0
    ranges: Kind = "lsq"


class Supernet(Method):
    """The supernet and its alpha. held_out: data that the weights are not trained on."""

    name = "smpq"

    def __init__(
        self,
        network: Network,
        options: SearchOptions,
        held_out: Batches,
        objective: Objective,
        teacher: Network | None,
        sample: Tensor,
    ) -> None:
        super().__init__(network)
        self.options, self.held_out, self.objective, self.teacher = options, held_out, objective, teacher
        everywhere = Policy({layer.name: LayerPolicy(FLOAT, options.activations) for layer in self.layers})
        self.activations = Activations(network, everywhere, sample, options.ranges)
        self.quantizers: dict[str, WidthQuantizer] = {}
        for layer in self.layers:
            weight = network.parameter_of(layer.weight)
            self.quantizers[layer.name] = WidthQuantizer(weight, options.bits).to(weight.device)
            network.quantize_weight(layer.weight, self.quantizers[layer.name])
        shape = (len(self.layers), len(options.bits))
        self.alpha: Table = np.zeros(shape)
        self.momentum: Table = np.zeros(shape)
        self.done = 0

    def choose(self, widths: Sequence[int] | Assignment) -> None:
        """Run at these indices into `bits`, one a layer."""
        for layer, width in zip(self.layers, widths, strict=True):
            self.quantizers[layer.name].choice.fill_(int(width))

    def begin_step(self, step: int) -> None:
        random = generator(self.options.seed, 4, step)
        self.choose(torch.randint(len(self.options.bits), (len(self.layers),), generator=random).tolist())

    def end_step(self, step: int, loss: Loss) -> bool:  # noqa: ARG002
        every = max(self.options.total // self.options.updates, 1)
        if (step + 1) % every or self.done >= self.options.updates:
            return False
        self.update()
        return True

    @torch.no_grad()
    def value_loss(
        self, images: Tensor, labels: Tensor | None, soft: Tensor | None, widths: Assignment
    ) -> float:
        """Loss of the supernet at these widths, by the statistics of this batch; the stored ones stay."""
        self.choose(widths)
        return float(self.objective(self.network(images), labels, soft))

    def update(self) -> None:
        """One update of alpha."""
        options = self.options
        game = Game(len(self.layers), len(options.bits), options.start, options.ceiling)
        images, labels = self.held_out.plain(min(options.samples, len(self.held_out.dataset)), self.done)
        kept = {name: tensor.clone() for name, tensor in self.network.moved().items()}
        with torch.no_grad():
            soft = self.teacher(images) if self.teacher is not None else None
        found = [
            play(game, order, lambda widths: self.value_loss(images, labels, soft, widths))
            for order in permutations(game, options.permutations, options.seed + self.done)
        ]
        self.network.restore_moved(kept)
        self.done += 1
        table = np.stack(found)
        seen = np.isfinite(table).sum(axis=0)
        psi = np.where(np.isfinite(table), table, 0.0).sum(axis=0) / np.maximum(seen, 1)
        self.alpha, self.momentum = momentum_update(self.alpha, self.momentum, psi)

    def status(self) -> dict[str, Any]:
        widths = self.alpha.argmax(axis=1)
        return {
            "bits": {
                layer.name: self.options.bits[int(width)]
                for layer, width in zip(self.layers, widths, strict=True)
            },
            "updates": self.done,
        }

    def state(self) -> dict[str, Any]:
        return {"alpha": self.alpha.tolist(), "momentum": self.momentum.tolist(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        self.alpha, self.momentum = np.asarray(state["alpha"]), np.asarray(state["momentum"])
        self.done = int(state["done"])

    def problem(self) -> Problem:
        """Layers and widths with what alpha says in the place of costs, for `discretized`."""
        schemes = [Scheme("int", width, "tensor") for width in self.options.bits]
        choices = [LayerPolicy(scheme, self.options.activations) for scheme in schemes]
        counts = macs(self.network.model)
        plain = Problem.of(self.layers, choices, lambda *_: 0.0, file_bytes=_HUGE, macs=counts)
        gains = np.cumsum(np.maximum(self.alpha, 0) * (np.arange(len(choices)) > 0), axis=1)
        return replace(plain, cost=gains.max(axis=1, keepdims=True) - gains)

    def result(self) -> Result:
        """The policy of largest alpha; weights are those of the fine-tuning to come."""
        policy = self.problem().policy(self.alpha.argmax(axis=1))
        return Result(policy, {}, self.activations.ranges, {})


def momentum_update(alpha: Table, momentum: Table, psi: Table) -> tuple[Table, Table]:
    """(alpha, q) after one update by psi (METHODS.md, SMPQ)."""
    norm = float(np.linalg.norm(psi))
    q = BETA * momentum + (LAMBDA * psi / norm if norm else 0.0)
    length = float(np.linalg.norm(q))
    return alpha + (XI * q / length if length else 0.0), q


def discretized(supernet: Supernet, share: float) -> Policy:
    """The policy of largest summed alpha whose bit operations are at most `share` of those of 8/8.

    A layer at width k has what its players up to k are worth (the upgrade game).
    """
    problem = supernet.problem()
    eight = 64 * sum(macs(supernet.network.model).get(layer.name, 0) for layer in supernet.layers)
    found = ilp(problem, limits={"bops": math.floor(share * eight)})
    return problem.policy(found)
