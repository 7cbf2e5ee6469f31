"""Quantized activations in training: what layers read, in integers of a learned range.

Codes 0 to L = 2^b - 1 with a fixed zero point z (0 where the tensor was never negative): value
step * (clamp(round(x / step) + z, 0, L) - z).

- pact (Choi et al. 2018): alpha, the upper end, is learned; its gradient is that of clip(x, low, alpha), the
  rounding being passed straight through.
- lsq (Esser et al. 2020): the step is learned, with the rounding in its gradient and the scale
  1 / sqrt(features * L).

Both begin at the range of least squares on a few batches. In the file they are Q/DQ pairs in front of the
layers (`quantize{placement=inputs}`), with these very steps and zero points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from onnxq.training.network import Network
from onnxq.training.quantizers import pass_through, scaled_gradient
from passes.core.errors import PolicyError
from passes.graph.boundary import import_graph
from passes.graph.layers import graph_layers
from passes.placement.places import plan_activations
from passes.policy import Policy, Scheme

__all__ = ["Activations", "Kind", "RangeQuantizer"]

Tensor = torch.Tensor
Kind = Literal["pact", "lsq"]
_SHRINK = tuple(1.0 - 0.02 * i for i in range(46))


class RangeQuantizer(nn.Module):
    """One tensor's integers. sample: values of it, any shape with the batch first."""

    def __init__(self, sample: Tensor, scheme: Scheme, kind: Kind) -> None:
        super().__init__()
        self.scheme, self.kind = scheme, kind
        self.levels = 2**scheme.bits - 1
        negative = bool((sample < 0).any())
        if scheme.symmetric:
            self.zero = (1 << (scheme.bits - 1)) if negative else 0
            low, high = -float(sample.abs().max()), float(sample.abs().max())
        else:
            low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)
            self.zero = round(-low / max(high - low, 1e-12) * self.levels) if negative else 0
        self.zero = min(self.zero, self.levels - 1)
        full = max(high / (self.levels - self.zero), 1e-6)
        step = min((full * factor for factor in _SHRINK), key=lambda trial: self._error(sample, trial))
        self.value = nn.Parameter(torch.tensor(step if kind == "lsq" else step * (self.levels - self.zero)))
        self.factor = 1 / math.sqrt(max(sample[0].numel(), 1) * self.levels)

    def _error(self, sample: Tensor, step: float) -> float:
        codes = torch.clamp(torch.round(sample / step), -self.zero, self.levels - self.zero)
        return float((codes * step - sample).square().mean())

    def _step(self) -> Tensor:
        positive = torch.clamp(self.value, min=1e-8)
        return positive if self.kind == "lsq" else positive / (self.levels - self.zero)

    def forward(self, x: Tensor) -> Tensor:
        kind, x = x.dtype, x.float()
        low, high = -float(self.zero), float(self.levels - self.zero)
        step = self._step()
        if self.kind == "lsq":
            step = scaled_gradient(step, self.factor)
            scaled = torch.clamp(x / step, low, high)
            return (pass_through(torch.round(scaled), scaled) * step).to(kind)
        inside = torch.maximum(torch.minimum(x, self.value), low * step.detach())
        held = step.detach()
        return pass_through(torch.clamp(torch.round(x.detach() / held), low, high) * held, inside).to(kind)

    def range(self) -> tuple[float, float]:
        """(low, high), from which passes/placement/activations.py finds the same step and zero point."""
        step = float(self._step().detach())
        high = step * (self.levels - self.zero)
        return (-high if self.zero else 0.0, high) if self.scheme.symmetric else (-step * self.zero, high)


class Activations:
    """The quantizers of all activations that a policy quantizes, put on a network.

    sample: a batch of inputs, by which ranges begin. Raises PolicyError for schemes that are not trained.
    """

    def __init__(self, network: Network, policy: Policy, sample: Tensor, kind: Kind = "lsq") -> None:
        self.quantizers: dict[str, RangeQuantizer] = {}
        chosen = {name: choice.activations for name, choice in policy.layers.items()}
        for name, scheme in chosen.items():
            if not scheme.is_float and not scheme.is_static:
                raise PolicyError(
                    f"layer '{name}': activations in {scheme} are not trained; use integers such as "
                    "uint8, or float"
                )
        if not any(scheme.is_static for scheme in chosen.values()):
            return
        graph = import_graph(network.model)
        layers = {id(node): layer for layer, node, home in graph_layers(graph) if home is graph}
        plan = plan_activations(graph, layers, policy, inputs_only=True)
        found = self._samples(network, list(plan.tensors), sample)
        for tensor, readers in plan.readers.items():
            quantizer = RangeQuantizer(found[tensor], plan.schemes[tensor], kind).to(sample.device)
            self.quantizers[tensor] = quantizer
            for node in readers:
                network.quantize_input(node.name, tensor, quantizer)

    @staticmethod
    def _samples(network: Network, names: Sequence[str], sample: Tensor) -> Mapping[str, Tensor]:
        training = network.training
        network.eval()
        with torch.no_grad():
            found = network.tensors(names, sample)
        network.train(training)
        return found

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Tensor -> (low, high)."""
        return {name: quantizer.range() for name, quantizer in self.quantizers.items()}
