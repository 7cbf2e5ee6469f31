"""From a trained network to a file: weights as their codes, activations with their trained ranges.

The float model gets the trained values in its own initializers, then the `quantize` pass obeys the policy
with the trained codes in the place of its encoder's: what is stored is what was trained, value for value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from onnxq.training.method import Result, trainable_layers
from onnxq.training.network import Network
from passes.core.base import Context
from passes.graph.model import Model
from passes.quantize import Quantize

__all__ = ["exported", "settled"]


def settled(network: Network, result: Result) -> None:
    """Let the network compute with the stored values themselves: weights decoded, no weight quantizer
    left."""
    weights = {layer.name: layer.weight for layer in trainable_layers(network)}
    with torch.no_grad():
        for name, encoded in result.encoded.items():
            parameter = network.parameter_of(weights[name])
            parameter.copy_(torch.from_numpy(encoded.decoded.copy()).to(parameter))
    network.drop_weight_quantizers()


def exported(network: Network, result: Result) -> Model:
    """The quantized model of a settled network; its metadata hold the policy."""
    model = network.written()
    if not result.policy.quantized:
        return model

    def ranges(_: Model, wanted: Sequence[tuple[str, int]]) -> dict[str, tuple[float, float]]:
        return {name: result.ranges[name] for name, _bits in wanted}

    context = Context(ranges=ranges, encoded=result.encoded)
    made = Quantize.of(result.policy, "inputs")(model, context).model
    return made.with_metadata(trained_bits=json.dumps(dict(result.bits), separators=(",", ":")))
