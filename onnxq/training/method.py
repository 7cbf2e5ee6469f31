"""What a training method is to the loop: quantizers on a network, and things to do around a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from onnxq.training.network import Network
from passes.formats.weights import EncodedWeight
from passes.graph.layers import Layer, find_layers
from passes.policy import LayerPolicy, Policy

__all__ = ["Loss", "Method", "Result", "trainable_layers"]

# Loss of one batch: (values for weights by name or None, step of the batch) -> scalar.
Loss = Callable[[Mapping[str, torch.Tensor] | None, int], torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What was trained. policy: of the file. encoded: layer -> its weight as codes. ranges: activation
    tensor -> (low, high). bits: layer -> bits a weight that training counted."""

    policy: Policy
    encoded: Mapping[str, EncodedWeight]
    ranges: Mapping[str, tuple[float, float]]
    bits: Mapping[str, int]


def trainable_layers(network: Network) -> list[Layer]:
    """Layers of the model whose weight is trained, in graph order."""
    known = set(network.weight_names)
    return [layer for layer in find_layers(network.model) if layer.weight in known]


class Method:
    """Base: plain training. Subclasses put quantizers on `network` when they are made."""

    name = "float"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layers = trainable_layers(network)

    def begin_step(self, step: int) -> None:
        """Before the forward of that step."""

    def add_gradients(self, step: int) -> None:
        """After the backward, before the optimizer: what a regularizer adds to the gradients."""

    def end_step(self, step: int, loss: Loss) -> bool:  # noqa: ARG002
        """After the optimizer; whether something changed that is worth a record."""
        return False

    def status(self) -> dict[str, Any]:
        """Numbers for log and progress: `bits` and more, by name."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside network and optimizer."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""

    def result(self) -> Result:
        """The trained policy and weights."""
        return Result(Policy({layer.name: LayerPolicy() for layer in self.layers}), {}, {}, {})
