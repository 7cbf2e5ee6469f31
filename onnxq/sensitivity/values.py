"""The logit MSE of whole policies on a few samples, for searches that ask for thousands.

The network stands in segments; a policy takes, of each, the session of the choices that it makes there.
Activations at every cut are kept from policy to policy, so that one that differs from the last in one layer
runs the segments from that layer on. Weights only; a policy that asks for more is given its weights.
`WholeValues` is the plain way, for policies whose activations count: quantize, open, run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.data import Dataset
from onnxq.metrics.logits import logits_of
from onnxq.sensitivity.replay import Replay
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.sensitivity.variants import VariantBuilder, with_weight
from onnxq.session import load_session
from passes.core.base import Context, RangeProvider
from passes.graph.layers import Layer
from passes.graph.model import Model
from passes.policy import FLOAT, Policy, Scheme
from passes.quantize import Quantize

__all__ = ["PolicyValues", "WholeValues"]

_SESSIONS = 192


class PolicyValues:
    """Logit MSE of policies on `data` (all of its samples, in one run per segment and chunk)."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        data: Dataset,
        budget: int = 2**29,
        rounded: RoundedWeights | None = None,
    ) -> None:
        self._replay = Replay(model, data, budget=budget)
        held = self._replay.segments, self._replay.anchors
        self._builder = VariantBuilder(model, layers, *held, rounded=rounded)
        self._layers = {layer.name: layer for layer in layers}
        members: dict[int, list[str]] = {index: [] for index in range(len(self._replay.segments))}
        for layer in layers:
            members[self._builder.home(layer.name)].append(layer.name)
        self._members = members
        self._sessions: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._decoded: dict[tuple[str, Scheme], Any] = {}
        # Hundreds of sessions with arenas would hold gigabytes; half the chunk does without, equally fast.
        chunk = max(self._replay.chunk // 2, 1)
        self._feeds = [batch.inputs for batch in data.batches(chunk)]
        self._last: list[tuple[tuple[Any, ...], list[Any]]] = []
        self.evaluations = 0
        self._reference = self._run({})

    def mse(self, policy: Policy) -> float:
        """Mean squared error of the logits against float; layers that are not named are float."""
        self.evaluations += 1
        logits = self._run({name: choice.weights for name, choice in policy.layers.items()})
        return float(np.square(logits.astype(np.float64) - self._reference).mean())

    def _run(self, policy: Mapping[str, Scheme]) -> Any:
        keys = [
            (index, *(str(policy.get(name, FLOAT)) for name in names))
            for index, names in self._members.items()
        ]
        same = 0
        while same < len(self._last) and self._last[same][0] == keys[same]:
            same += 1
        del self._last[same:]
        for index in range(same, len(keys)):
            segment = self._replay.segments[index]
            session = self._session(keys[index], index, policy)
            if index:
                feeds = [{segment.input: value} for value in self._last[index - 1][1]]
            else:
                feeds = self._feeds
            self._last.append((keys[index], [session.run([segment.output], feed)[0] for feed in feeds]))
        return np.concatenate([logits_of([value]) for value in self._last[-1][1]])

    def _session(self, key: tuple[Any, ...], index: int, policy: Mapping[str, Scheme]) -> Any:
        if key not in self._sessions:
            proto = self._replay.segments[index].proto
            for name in self._members[index]:
                scheme = policy.get(name, FLOAT)
                if not scheme.is_float:
                    proto = with_weight(proto, self._layers[name], *self._weight(name, scheme))
            self._sessions[key] = self._replay.open([proto], arena=False)[0]
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _weight(self, name: str, scheme: Scheme) -> Any:
        if (name, scheme) not in self._decoded:
            self._decoded[name, scheme] = self._builder.decoded(self._layers[name], scheme)
        return self._decoded[name, scheme]


class WholeValues:
    """Logit MSE of policies on all samples of `data`, activations included.

    ranges: of static activations, on the model as it is.
    """

    def __init__(self, model: Model, data: Dataset, ranges: RangeProvider | None) -> None:
        self._model, self._ranges = model, ranges
        self._feeds = [batch.inputs for batch in data.batches(Replay(model, data).chunk)]
        self._reference = self._run(model)

    def mse(self, policy: Policy) -> float:
        """Mean squared error of the logits against float; layers that are not named are float."""
        quantized = Quantize.of(policy)(self._model, Context(check=False, ranges=self._ranges)).model
        return float(np.square(self._run(quantized).astype(np.float64) - self._reference).mean())

    def _run(self, model: Model) -> Any:
        session = load_session(model, threads=1)
        return np.concatenate([logits_of(session.run(None, feed)) for feed in self._feeds])
