"""Latency ratios predicted from measured candidates, to rank others cheaply.

The ratio to float is modelled as a sum over the layers: a layer in a class c (float; int8 with static or
with dynamic activations; quantized weights alone), dense or depthwise, costs a_c * (its share of the MACs)
+ b_c * (its share of the weights), with a constant for what is in no layer. The coefficients are
non-negative, from least squares on the candidates measured so far, with a weak pull towards 1, which is
what float costs. A prediction only orders; what it puts on the front is measured (onnxq/tuning/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from onnxq.search.candidate import Latency

__all__ = ["LatencyModel", "LayerWork"]

_CLASSES = ("float", "static", "dynamic", "weights")
# Fewer measured candidates than this cannot tell the classes apart.
_FEWEST = 4
# Weight of the pull towards float's costs, beside one measured candidate.
_PULL = 0.05


@dataclass(frozen=True)
class LayerWork:
    """What a layer may cost: MACs of one sample, weights (count), and whether it is depthwise."""

    macs: int
    weights: int
    depthwise: bool = False


@dataclass
class LatencyModel:
    """One model per device; learns from what is measured."""

    layers: Mapping[str, LayerWork]
    _seen: dict[str, dict[str, tuple[npt.NDArray[np.float64], float]]] = field(default_factory=dict)
    _fits: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def learn(self, device: str, policy: Mapping[str, Any], latency: Latency) -> None:
        """Take in a measured ratio; predicted ones (runs 0) teach nothing."""
        if not latency.runs:
            return
        features = self.features(policy)
        self._seen.setdefault(device, {})[features.tobytes().hex()] = (features, latency.ratio)
        self._fits.pop(device, None)

    def predict(self, device: str, policy: Mapping[str, Any]) -> float | None:
        """The ratio to float; None while too few candidates are measured."""
        seen = self._seen.get(device, {})
        if len(seen) < _FEWEST:
            return None
        if device not in self._fits:
            self._fits[device] = _fit(list(seen.values()))
        return float(self.features(policy) @ self._fits[device])

    def features(self, policy: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """A constant, then for each class and kind of layer the shares of MACs and weights."""
        macs = sum(layer.macs for layer in self.layers.values()) or 1
        weights = sum(layer.weights for layer in self.layers.values()) or 1
        entries = policy.get("layers", {})
        found = np.zeros((len(_CLASSES), 2, 2))
        for name, layer in self.layers.items():
            at = _CLASSES.index(_class_of(entries.get(name, {})))
            found[at, int(layer.depthwise)] += (layer.macs / macs, layer.weights / weights)
        return np.append(1.0, found.ravel())


def _class_of(entry: Mapping[str, Any]) -> str:
    weights, activations = str(entry.get("weights", "float")), str(entry.get("activations", "float"))
    if weights == "float":
        return "float"
    if activations == "float":
        return "weights"
    return "dynamic" if "dynamic" in activations else "static"


def _fit(seen: Sequence[tuple[npt.NDArray[np.float64], float]]) -> npt.NDArray[np.float64]:
    rows = np.array([features for features, _ in seen])
    ratios = np.array([ratio for _, ratio in seen])
    # Float costs its share of the MACs, nothing per weight, and nothing outside of layers.
    prior = np.append(0.0, np.tile([1.0, 0.0], rows.shape[1] // 2))
    pull = np.sqrt(_PULL) * np.eye(rows.shape[1])
    found, _ = nnls(np.vstack([rows, pull]), np.append(ratios, np.sqrt(_PULL) * prior))
    return np.asarray(found, np.float64)
