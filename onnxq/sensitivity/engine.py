"""The sensitivity engine: S of many variants of one model, each float segment and each image paid for once.

Variants are sorted by the segment in which they begin. The float network is walked from front to back
(onnxq/sensitivity/replay.py); at each segment its variants start from the held activations: a small session
of the varied segment (1 to 3 ms to make), then the shared session of all that follows. No file is written.

Samples come in a random order and in subsets that grow by half. With a precision p > 0 a variant stops when
the standard error of its MSE is below p times the MSE; with p = 0 every variant sees every sample, and its
values are those of writing the model and running it whole, up to float rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxq.data import Dataset
from onnxq.metrics.logits import Logits, check_usable
from onnxq.sensitivity.replay import Replay
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.sensitivity.statistics import Accumulator, Sensitivity
from onnxq.sensitivity.variants import Variant, VariantBuilder, find_node
from passes.core.base import RangeProvider
from passes.core.errors import DataError
from passes.graph.layers import Layer
from passes.graph.model import Model

__all__ = ["Settings", "measure_sensitivities"]

_FIRST_SUBSET = 16
_SQNR_SAMPLES = 16


@dataclass(frozen=True)
class Settings:
    """How sensitivities are measured.

    precision: relative standard error at which a variant stops, 0 for never. budget: bytes of activations in
    memory. seed: of the order of the samples.
    """

    precision: float = 0.2
    threads: int = 1
    budget: int = 2**29
    seed: int = 0


def measure_sensitivities(
    model: Model,
    layers: Sequence[Layer],
    data: Dataset,
    variants: Iterable[Variant],
    settings: Settings | None = None,
    *,
    known: Mapping[str, Sensitivity] | None = None,
    ranges: RangeProvider | None = None,
    rounded: RoundedWeights | None = None,
    record: Callable[[Sensitivity], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    deadline: float | None = None,
) -> dict[str, Sensitivity]:
    """Variant key -> sensitivity, of every variant; those in `known` are taken over.

    rounded: makes the weights of variants of weights alone; without it they are rounded to nearest.
    record: called once for each new result, before the next one is begun. deadline: on time.monotonic's
    clock; where it comes near, variants stop after the first subset, and what is not measured by then is
    missing from the result.
    Raises DataError for an empty dataset.
    """
    settings = settings or Settings()
    if len(data) == 0:
        raise DataError(f"{data.name}: holds no sample to measure sensitivities on")
    wanted = {variant.key: variant for variant in variants}
    found = {key: entry for key, entry in (known or {}).items() if key in wanted}
    missing = [variant for key, variant in wanted.items() if key not in found]
    if missing:
        order = np.random.default_rng(settings.seed).permutation(len(data))
        subset = data.subset([int(index) for index in order])
        if rounded is not None:
            # All of them in one walk over the data, not one walk each.
            rounded.prepare((n, c.weights) for v in missing if v.weights_only for n, c in v.choices)
        with Replay(model, subset, threads=settings.threads, budget=settings.budget) as replay:
            builder = VariantBuilder(model, layers, replay.segments, replay.anchors, ranges, rounded)
            run = _Run(replay, builder)
            for entry in run.all(missing, settings.precision, deadline):
                found[entry.key] = entry
                record(entry)
                progress(len(found), len(wanted))
    return {key: found[key] for key in wanted if key in found}


class _Run:
    def __init__(self, replay: Replay, builder: VariantBuilder) -> None:
        self.replay, self.builder = replay, builder

    def all(
        self, variants: Sequence[Variant], precision: float, deadline: float | None
    ) -> Iterable[Sensitivity]:
        """Sensitivities in the order of the graph, each as soon as it is known."""
        starts = [self.builder.first(variant) for variant in variants]
        errors = Accumulator(self._reference())
        sqnr: dict[str, float | None] = {}
        began = time.monotonic()
        for done, index in enumerate(sorted(range(len(variants)), key=lambda i: (starts[i], i))):
            now = time.monotonic()
            # One in any case: a run that is started again and again on a short time gets to its end.
            if done and deadline is not None and now > deadline:
                return
            rate = (now - began) / max(done, 1)
            late = deadline is not None and now + rate * (len(variants) - done) > deadline
            variant = variants[index]
            self.replay.advance(starts[index])
            if variant.key not in sqnr:
                same = [v for v, start in zip(variants, starts, strict=True) if start == starts[index]]
                sqnr = self._own_sqnr(same)
            wanted = math.inf if late else precision
            yield self._measure(variant, errors, wanted, sqnr.get(variant.key))

    def _reference(self) -> Logits:
        """Float's logits, run as the variants are run."""
        whole = self.replay.open([self.replay.model.proto])
        logits = self.replay.logits(whole, 0, len(self.replay.data))
        check_usable(logits, "the float model")
        return logits

    def _measure(
        self, variant: Variant, errors: Accumulator, precision: float, sqnr: float | None
    ) -> Sensitivity:
        change = self.builder.change(variant)
        # The position is that of the first scheme of this kind; this one may leave the segment as it was.
        assert change.first >= self.replay.position
        before = [held.proto for held in self.replay.segments[self.replay.position : change.first]]
        sessions = [*self.replay.open([*before, *change.models]), *self.replay.rest(change.last)]
        errors.restart()
        total, size = len(self.replay.data), self.replay.chunk
        end = -(-_FIRST_SUBSET // size) * size
        while errors.samples < total:
            stop = total if precision <= 0 else min(end, total)
            errors.update(self.replay.logits(sessions, errors.samples, stop))
            if errors.settled(precision):
                break
            end = -(-3 * end // (2 * size)) * size
        return errors.result(variant.key, sqnr)

    def _own_sqnr(self, variants: Sequence[Variant]) -> dict[str, float | None]:
        """Variant key -> SQNR in dB of the layer's own output, for one layer's weights varied alone.

        The layer is linear in its weights: beside its node stands a copy with W_varied - W, whose output is
        the error. All variants of a segment that are of one layer share a session.
        """
        found: dict[str, float | None] = dict.fromkeys((v.key for v in variants), None)
        by_layer: dict[str, list[Variant]] = {}
        for variant in variants:
            if len(variant.choices) == 1 and variant.weights_only:
                by_layer.setdefault(variant.choices[0][0], []).append(variant)
        for name, members in by_layer.items():
            # The probe starts from what is held, and knows no factor beside the weight.
            if self.builder.home(name) != self.replay.position or self.builder.scaled(name):
                continue
            probe = _probe(self.builder, self.builder.layers[name], members)
            if probe is None:
                continue
            signal, noise = 0.0, np.zeros(len(members))
            session = self.replay.open([probe])[0]
            for outputs in self.replay.probe(session, 0, min(_SQNR_SAMPLES, len(self.replay.data))):
                signal += _energy(outputs[0])
                noise += [_energy(output) for output in outputs[1:]]
            for member, energy in zip(members, noise.tolist(), strict=True):
                if energy > 0 and signal > 0:
                    found[member.key] = 10 * float(np.log10(signal / energy))
        return found


def _energy(array: Any) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _probe(builder: VariantBuilder, layer: Layer, members: Sequence[Variant]) -> onnx.ModelProto | None:
    """The segment up to the layer, with its output and one error output per member; None for subgraphs."""
    source = builder.home_proto(layer.name)
    found = find_node(source, layer)
    if found is None or layer.in_subgraph:
        return None
    node = found[1]
    position = next(index for index, held in enumerate(source.graph.node) if held is node)
    graph = onnx.GraphProto(name="probe", node=source.graph.node[: position + 1], input=source.graph.input)
    index = 1 if layer.weight == node.input[1] else 0
    weight = builder.array(layer)
    outputs = [node.output[0]]
    for number, member in enumerate(members):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        name = f"{layer.weight}.error.{number}"
        copy.input[index] = name
        del copy.input[2:]  # what the bias makes up for is not the weight's error
        copy.name, copy.output[0] = f"{node.name}.error.{number}", f"{node.output[0]}.error.{number}"
        difference = builder.decoded(layer, member.choices[0][1].weights)[0] - weight
        graph.initializer.append(numpy_helper.from_array(difference, name))
        graph.node.append(copy)
        outputs.append(copy.output[0])
    used = {name for held in graph.node for name in held.input}
    graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in outputs)
    proto = onnx.ModelProto(ir_version=source.ir_version, graph=graph, opset_import=source.opset_import)
    proto.functions.extend(source.functions)
    return proto
