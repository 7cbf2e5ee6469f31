"""The ladders of schemes that a tune chooses from, cheapest first, mode by mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from passes.policy import FLOAT, LayerPolicy, Scheme
from passes.quantize import activation_scheme, weight_scheme

__all__ = ["ladders", "schemes_in", "smoothable"]


def schemes_in(text: str) -> tuple[str, ...]:
    """Schemes of activations, as written; uint8 where there is none."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) or ("uint8",)


def smoothable(weights: Scheme) -> bool:
    """Whether smoothing changes anything: where all channels have one scale."""
    return weights.is_integer and weights.granularity == "tensor"


def ladders(
    modes: Sequence[str], weights: Sequence[str], activations: str, *, smoothed: bool
) -> dict[str, tuple[LayerPolicy, ...]]:
    """Mode -> schemes from cheapest to float; with several activations every pair.

    smoothed: whether each scheme with one scale a tensor is offered with the layer smoothed, too.
    """
    static = [activation_scheme(text) for text in schemes_in(activations)]
    kinds = {
        "static": static,
        "dynamic": [replace(activation_scheme("uint8"), dynamic=True)],
        "weights": [FLOAT],
    }
    return {mode: _ladder(weights, kinds[mode], smoothed) for mode in modes}


def _ladder(weights: Sequence[str], kinds: Sequence[Scheme], smoothed: bool) -> tuple[LayerPolicy, ...]:
    steps = [LayerPolicy(weight_scheme(text), kind) for text in weights for kind in kinds]
    if smoothed:
        steps += [replace(choice, smooth="output") for choice in steps if smoothable(choice.weights)]
    return (*dict.fromkeys(steps), LayerPolicy())
