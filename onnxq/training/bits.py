"""MSQ's arithmetic of bits: compression, the share of nonzero LSBs, and which layers lose bits when.

Pruning (METHODS.md, MSQ, algorithm): in every round a layer of n bits with beta < alpha becomes one of n - k
bits, where beta is the share of its weights whose k lowest bits are not all zero. In the last round layers
lose bits in the order of beta, lowest first, until the compression Gamma = 32 sum(P) / sum(n P) is reached.

Beyond that, a `pace`: each round but the last also prunes in the order of beta until the mean bits are no
more than the pace asks. Short trainings need it (METHODS.md: layers that never leave 8 bits otherwise lose
all at the end).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["LEAST_BITS", "LayerBits", "compression", "omega_k", "prune"]

# The least that the file formats store.
LEAST_BITS = 2


@dataclass(frozen=True)
class LayerBits:
    """name: of the layer. weights: how many. bits: n. k: LSBs under pressure. beta: see the module's
    docstring. omega: Tr(H) |W_n - W|^2."""

    name: str
    weights: int
    bits: int = 8
    k: int = 1
    beta: float = 1.0
    omega: float = 0.0

    @property
    def lost(self) -> LayerBits:
        """The layer with k bits less, at least LEAST_BITS."""
        return replace(self, bits=max(self.bits - self.k, LEAST_BITS))


def compression(layers: Sequence[LayerBits]) -> float:
    """Gamma = 32 sum(P) / sum(n P)."""
    return 32 * sum(layer.weights for layer in layers) / sum(layer.bits * layer.weights for layer in layers)


def omega_k(omegas: Sequence[float]) -> list[int]:
    """k of every layer: 1 where Omega is above the mean over the layers, else 2."""
    mean = sum(omegas) / max(len(omegas), 1)
    return [1 if omega > mean else 2 for omega in omegas]


def _lowest(layers: Sequence[LayerBits], done: set[int]) -> int | None:
    left = [i for i, layer in enumerate(layers) if layer.bits > LEAST_BITS and i not in done]
    return min(left, key=lambda i: (layers[i].beta, i)) if left else None


def prune(
    layers: Sequence[LayerBits], *, alpha: float, target: float, last: bool = False, pace: float = 0.0
) -> list[LayerBits]:
    """One round. target: Gamma, which no round goes beyond by more than one layer. pace: compression that
    this round must reach, 0 for none. In the last round, target must be reached."""
    held = list(layers)
    asked = target if last else min(pace, target)
    done: set[int] = set()
    while compression(held) < target:
        index = _lowest(held, done)
        if index is None:
            if not done or compression(held) >= asked:
                break
            done = set()
            continue
        if held[index].beta >= alpha and compression(held) >= asked:
            break
        held[index] = held[index].lost
        done.add(index)
    return held
