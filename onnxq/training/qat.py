"""Plain quantization-aware training: every layer at the scheme that a policy gives it, activations too.

Weights: LSQ, RoundClamp or DoReFa for integers (signed, symmetric), the format's own encoder for GSE;
straight through. It is the baseline of the other methods and the last step behind any policy.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from onnxq.training.activations import Activations, Kind
from onnxq.training.encode import integer_rows, integer_weight, plain_weight
from onnxq.training.method import Method, Result
from onnxq.training.network import Network
from onnxq.training.quantizers import DoReFa, Encoded, Lsq, RoundClamp
from passes.core.errors import PolicyError
from passes.formats import format_of
from passes.formats.weights import EncodedWeight
from passes.graph.layers import Layer
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme

__all__ = ["Qat", "Weights", "weight_quantizer"]

Weights = Literal["lsq", "roundclamp", "dorefa"]


def weight_quantizer(layer: Layer, weight: torch.Tensor, scheme: Scheme, kind: Weights) -> nn.Module:
    """The module of one layer. Raises PolicyError for a scheme that is not trained."""
    if format_of(scheme).trainable:
        return Encoded(scheme, layer.channel_axis)
    if not scheme.is_integer or not scheme.signed or not scheme.symmetric or scheme.bits > 8:
        raise PolicyError(
            f"layer '{layer.name}': weights in {scheme} are not trained; use signed symmetric integers up "
            "to 8 bits, "
            "gse, mxfp4, mxint8, or float"
        )
    if kind == "lsq":
        block = {"axis": layer.channel_axis, "granularity": scheme.granularity, "block": scheme.block_size}
        return Lsq(weight, scheme.bits, **block)  # type: ignore[arg-type]
    if scheme.granularity != "tensor":
        raise PolicyError(f"layer '{layer.name}': {kind} has one scale a tensor, not {scheme}; use lsq")
    if kind == "roundclamp":
        return RoundClamp(weight, scheme.bits)
    if scheme.bits > 7:
        raise PolicyError(
            f"layer '{layer.name}': DoReFa's {scheme.bits} bits are stored in {scheme.bits + 1}; use lsq "
            "for 8 bits"
        )
    return DoReFa(scheme.bits)


def encoded_weight(
    layer: Layer, weight: torch.Tensor, scheme: Scheme, held: nn.Module
) -> tuple[Scheme, EncodedWeight]:
    """(scheme of the file, the weight as codes); DoReFa's scheme has one bit more."""
    if isinstance(held, Lsq):
        rows, steps = (item.cpu().numpy() for item in held.rows(weight))
        return scheme, integer_rows(layer, weight, scheme, rows, steps)
    if isinstance(held, RoundClamp | DoReFa):
        stored = scheme if isinstance(held, RoundClamp) else Scheme("int", scheme.bits + 1, "tensor")
        codes = held.codes(weight)
        return stored, integer_weight(layer, weight, stored, codes, held.current_step(weight))
    return scheme, plain_weight(layer, weight, scheme)


class Qat(Method):
    """Training at a fixed policy. sample: a batch of inputs, where the policy quantizes activations."""

    name = "qat"

    def __init__(
        self,
        network: Network,
        policy: Policy,
        sample: torch.Tensor,
        *,
        weights: Weights = "lsq",
        activations: Kind = "lsq",
    ) -> None:
        super().__init__(network)
        policy.check_names(self.layers)
        self.policy = policy
        self.activations = Activations(network, policy, sample, activations)
        self.quantizers: dict[str, nn.Module] = {}
        for layer in self.layers:
            scheme = policy[layer.name].weights
            if scheme.is_float:
                continue
            weight = network.parameter_of(layer.weight)
            self.quantizers[layer.name] = weight_quantizer(layer, weight, scheme, weights)
            network.quantize_weight(layer.weight, self.quantizers[layer.name].to(weight.device))

    def status(self) -> dict[str, Any]:
        schemes = {layer.name: self.policy[layer.name].weights for layer in self.layers}
        bits = {name: scheme.bits for name, scheme in schemes.items()}
        total = sum(layer.weights for layer in self.layers)
        used = sum(layer.weights * bits[layer.name] for layer in self.layers)
        return {"bits": bits, "compression": 32 * total / used}

    def result(self) -> Result:
        policy: dict[str, LayerPolicy] = {}
        encoded: dict[str, EncodedWeight] = {}
        for layer in self.layers:
            chosen = self.policy[layer.name]
            stored = FLOAT
            if layer.name in self.quantizers:
                weight = self.network.parameter_of(layer.weight)
                held = self.quantizers[layer.name]
                stored, encoded[layer.name] = encoded_weight(layer, weight, chosen.weights, held)
            policy[layer.name] = LayerPolicy(stored, chosen.activations)
        bits = {layer.name: self.policy[layer.name].weights.bits for layer in self.layers}
        return Result(Policy(policy), encoded, self.activations.ranges, bits)
