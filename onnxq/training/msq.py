"""MSQ: training with a regularizer on least significant bits, which go where they are zero (METHODS.md, MSQ).

L = L_task(W_n) + lambda R, R = sum |B_k|, dR/du = sign(B_k) (equations 5 to 8). The gradient of R is added
to the weights' own after the backward, so that no graph is kept for it: memory is that of plain training.

`strength=gradient` scales lambda per layer by the root mean square of the task's gradient of that layer in
the same step: lambda is then the ratio of the two forces, equal for layers of every size (METHODS.md: with
one number for all, early layers never left 8 bits). `strength=plain` is the equation as it stands.

Every `interval` steps until `prune_steps`: beta, Omega = Tr(H) |W_n - W|^2 (equation 9), k, and a round of
pruning (onnxq/training/bits.py). After that lambda is 0: plain quantization-aware training at the bits that
were found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from onnxq.training.activations import Activations, Kind
from onnxq.training.bits import LEAST_BITS, LayerBits, compression, omega_k, prune
from onnxq.training.data import generator
from onnxq.training.encode import integer_weight
from onnxq.training.hessian import traces
from onnxq.training.method import Loss, Method, Result
from onnxq.training.network import Network
from onnxq.training.quantizers import RoundClamp, lsb
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme

__all__ = ["Msq", "MsqOptions"]


@dataclass(frozen=True)
class MsqOptions:
    """compression: Gamma. lam: lambda. alpha: beta below which a layer loses bits. prune_steps: length of the
    regularized part. rounds: of pruning in it. paced: see onnxq/training/bits.py. learned: steps
    (RoundClamp)."""

    compression: float
    prune_steps: int
    rounds: int = 10
    lam: float = 0.5
    alpha: float = 0.3
    bits: int = 8
    probes: int = 4
    strength: Literal["gradient", "plain"] = "gradient"
    paced: bool = True
    learned: bool = True
    seed: int = 0


class Msq(Method):
    """Bit sparsification of all layers of a network."""

    name = "msq"

    def __init__(
        self,
        network: Network,
        options: MsqOptions,
        *,
        activations: Scheme = FLOAT,
        sample: torch.Tensor,
        ranges: Kind = "lsq",
    ) -> None:
        """activations: one scheme for what all layers read; sample: a batch of inputs, by which ranges
        begin."""
        super().__init__(network)
        self.options, self.activation_scheme = options, activations
        everywhere = Policy({layer.name: LayerPolicy(FLOAT, activations) for layer in self.layers})
        self.activations = Activations(network, everywhere, sample, ranges)
        self.quantizers: dict[str, RoundClamp] = {}
        self.held = [LayerBits(layer.name, layer.weights, options.bits) for layer in self.layers]
        for layer in self.layers:
            weight = network.parameter_of(layer.weight)
            quantizer = RoundClamp(weight, options.bits, learned=options.learned)
            self.quantizers[layer.name] = quantizer.to(weight.device)
            network.quantize_weight(layer.weight, quantizer)
        self._weights = [network.parameter_of(layer.weight) for layer in self.layers]

    @property
    def interval(self) -> int:
        """Steps between rounds."""
        return max(self.options.prune_steps // self.rounds, 1)

    @property
    def rounds(self) -> int:
        """Rounds of pruning: no more than there are steps."""
        return max(min(self.options.rounds, self.options.prune_steps), 1)

    def _active(self, step: int) -> bool:
        """Whether the regularizer works in that step."""
        return step < self.options.prune_steps and compression(self.held) < self.options.compression

    @torch.no_grad()
    def add_gradients(self, step: int) -> None:
        if not self._active(step):
            return
        for held, weight in zip(self.held, self._weights, strict=True):
            if held.bits <= LEAST_BITS or weight.grad is None:
                continue
            quantizer = self.quantizers[held.name]
            direction = torch.sign(lsb(quantizer.unit(weight), held.bits, _pressed(held)))
            if self.options.strength == "gradient":
                size = weight.grad.square().mean().sqrt()
            else:
                size = 1 / (quantizer.current_step(weight) * quantizer.levels)
            weight.grad.add_(direction * (self.options.lam * size))

    def end_step(self, step: int, loss: Loss) -> bool:
        done = step + 1
        if done % self.interval or done // self.interval > self.rounds:
            return False
        if compression(self.held) >= self.options.compression:
            return False
        number = done // self.interval
        self._measure(step, loss)
        wanted = self.options.compression
        share = number / self.rounds
        mean_bits = self.options.bits + (32 / wanted - self.options.bits) * share
        found = prune(
            [replace(held, k=_pressed(held)) for held in self.held],
            alpha=self.options.alpha,
            target=wanted,
            last=number == self.rounds,
            pace=32 / mean_bits if self.options.paced else 0.0,
        )
        for before, after, weight in zip(self.held, found, self._weights, strict=True):
            if after.bits != before.bits:
                self.quantizers[before.name].set_bits(weight, after.bits)
        self.held = found
        return True

    def _measure(self, step: int, loss: Loss) -> None:
        """beta, Omega and k of every layer."""
        for index, (held, weight) in enumerate(zip(self.held, self._weights, strict=True)):
            self.held[index] = replace(held, beta=self.nonzero(held, weight))
        quantizers = [self.quantizers[held.name] for held in self.held]
        values = {
            layer.weight: quantizer(weight).detach()
            for layer, quantizer, weight in zip(self.layers, quantizers, self._weights, strict=True)
        }
        found = traces(
            lambda held: loss(held, step), values, self.options.probes, generator(self.options.seed, 3, step)
        )
        omegas = [
            max(found[layer.weight], 0.0) * float((values[layer.weight] - weight.detach()).square().sum())
            for layer, weight in zip(self.layers, self._weights, strict=True)
        ]
        self.held = [
            replace(held, omega=omega, k=k)
            for held, omega, k in zip(self.held, omegas, omega_k(omegas), strict=True)
        ]

    def nonzero(self, held: LayerBits, weight: torch.Tensor) -> float:
        """beta: the share of weights with c mod 2^k != 0."""
        codes = self.quantizers[held.name].codes(weight)
        return float((torch.remainder(codes, 2 ** _pressed(held)) != 0).float().mean())

    def status(self) -> dict[str, Any]:
        total = sum(held.weights for held in self.held)
        betas = [self.nonzero(held, weight) for held, weight in zip(self.held, self._weights, strict=True)]
        return {
            "compression": compression(self.held),
            "nonzero_lsb": sum(b * held.weights for b, held in zip(betas, self.held, strict=True)) / total,
            "bits": {held.name: held.bits for held in self.held},
            "k": {held.name: held.k for held in self.held},
            "beta": {held.name: beta for held, beta in zip(self.held, betas, strict=True)},
            "omega": {held.name: held.omega for held in self.held},
        }

    def state(self) -> dict[str, Any]:
        return {"held": [asdict(held) for held in self.held]}

    def restore(self, state: dict[str, Any]) -> None:
        self.held = [LayerBits(**entry) for entry in state["held"]]
        for held in self.held:
            self.quantizers[held.name].bits = held.bits

    def result(self) -> Result:
        policy, encoded, bits = {}, {}, {}
        for layer, weight in zip(self.layers, self._weights, strict=True):
            quantizer = self.quantizers[layer.name]
            scheme = Scheme("int", quantizer.bits, "tensor")
            policy[layer.name] = LayerPolicy(scheme, self.activation_scheme)
            bits[layer.name] = quantizer.bits
            encoded[layer.name] = integer_weight(
                layer, weight, scheme, quantizer.codes(weight), quantizer.current_step(weight)
            )
        return Result(Policy(policy), encoded, self.activations.ranges, bits)


def _pressed(held: LayerBits) -> int:
    """k as far as the layer has bits to lose."""
    return max(min(held.k, held.bits - LEAST_BITS), 1)
