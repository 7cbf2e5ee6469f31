"""From a file and a folder to what a search needs: the prepared model, the data, the ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from onnxq.calibration import CalibratedRanges, StatisticsCache
from onnxq.data import Dataset, check_labels, input_specs, materialise, open_dataset, random_dataset
from onnxq.evaluation import load_session, refuse_unknown_ops
from onnxq.files import canonical_json, sha256_bytes
from onnxq.metrics.base import Metric
from onnxq.metrics.logits import logits_of
from onnxq.metrics.registry import metrics_beside, open_metric
from onnxq.proof import Reference
from onnxq.search.journal import Journal
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.groups import DataOptions, SchemeOptions
from passes.core.base import Context, Pass, Sequential
from passes.core.errors import DataError, UnsupportedModelError
from passes.graph.boundary import import_graph
from passes.graph.external_data import tensor_digest
from passes.graph.layers import Layer, find_layers, graph_layers
from passes.graph.light import bare_copy
from passes.graph.model import Model, is_large, load, serialize
from passes.graph.select import select_layers
from passes.opset import upgrade
from passes.placement.places import plan_activations
from passes.policy import Policy
from passes.preparation import preparation
from passes.quantize import required_policy_opset
from passes.smooth import Smooth

__all__ = [
    "Prepared",
    "RecordedRanges",
    "base_recipe",
    "calibrate_once",
    "model_hash",
    "open_data",
    "prepare_model",
]

_MEMORY_FOR_DATA = 2**30


def base_recipe(schemes: SchemeOptions) -> Sequential:
    """The passes that run once before any policy."""
    members: list[Pass] = [*preparation()]
    if schemes.smooth is not None:
        members.append(Smooth(site=schemes.smooth, layers=schemes.smooth_layers))
    return Sequential(tuple(members))


def model_hash(model: Model) -> str:
    """SHA-256 of the model's content, weights in external data included."""
    if not is_large(model.proto):
        return sha256_bytes(serialize(model))
    parts = [tensor_digest(tensor).hex() for tensor in model.proto.graph.initializer]
    skeleton = bare_copy(model.proto)
    return sha256_bytes(
        canonical_json([*parts, sha256_bytes(skeleton.SerializeToString(deterministic=True))]).encode()
    )


def prepare_model(path: str, schemes: SchemeOptions, context: Context) -> tuple[Model, list[Layer]]:
    """Load, run the base recipe, lift to the opset that every policy of the search needs.

    What the model declares of its outputs and does not keep is forgotten first, with a note.
    Raises UnsupportedModelError when no layer can be quantized.
    """
    source = load(path)
    refuse_unknown_ops(source)
    source, notes = Reference(source).corrected()
    for note in notes:
        context.note("info", "", note)
    model = base_recipe(schemes)(source, context).model
    layers = find_layers(model)
    if not layers:
        raise UnsupportedModelError(
            f"{source.name}: has no quantizable layer "
            "(Conv, ConvTranspose, Gemm or MatMul with a constant weight)"
        )
    steps = [step for ladder in schemes.ladders.values() for step in ladder]
    opset = max(required_policy_opset(Policy({"": step})) for step in steps)
    return upgrade(model, opset, "the search space", context), layers


def open_data(options: DataOptions, model: Model) -> tuple[Dataset, Dataset]:
    """The evaluation set and the calibration set, disjoint when both come from the same data.

    Raises DataError for data that is empty or does not fit the model.
    """
    specs = input_specs(model.proto)

    def opened(spec: str, limit: int | None) -> Dataset:
        return open_dataset(spec, specs, preprocess=options.preprocess, limit=limit, seed=options.seed)

    data = opened(options.evaluation, options.limit)
    wanted = options.calibration_samples
    if options.random:
        calibration: Dataset = random_dataset(specs, wanted, options.seed)
    elif options.calibration is not None:
        calibration = opened(options.calibration, wanted)
    else:
        if len(data) < 2:
            raise DataError(
                f"{data.name}: one sample cannot serve both calibration and evaluation; give more"
            )
        wanted = min(wanted, len(data) // 2)
        order = np.random.default_rng(options.seed).permutation(len(data))
        calibration = data.subset(sorted(order[:wanted].tolist()))
        data = data.subset(order[wanted:].tolist())
    return materialise(data, _MEMORY_FOR_DATA), materialise(calibration, _MEMORY_FOR_DATA)


def check_metric(metric: Metric, data: Dataset, model: Model) -> None:
    """Raise DataError for data that the metric cannot be measured on: without labels, or with wrong ones."""
    metrics = metrics_beside(metric, labelled=data.labelled, reference=True)
    if any(each.class_labels for each in metrics):
        session = load_session(model, threads=1)
        first = next(data.batches(1, 0, 1))
        check_labels(data, logits_of(session.run(None, first.inputs)).shape[1])


class _Provider(Protocol):
    def __call__(
        self, model: onnx.ModelProto, tensors: Sequence[tuple[str, int]]
    ) -> dict[str, tuple[float, float]]: ...


@dataclass
class RecordedRanges:
    """A range provider that remembers in the run's journal, so that a rebuilt candidate is byte-identical
    and a resumed run calibrates nothing twice. Without a provider it only remembers.
    """

    recorded: dict[str, tuple[float, float]] = field(default_factory=dict)
    provider: _Provider | None = None
    journal: Journal | None = None

    @classmethod
    def of(cls, journal: Journal, provider: _Provider) -> RecordedRanges:
        return cls(_read(journal.records("ranges")), provider, journal)

    def __call__(self, model: Model, tensors: Sequence[tuple[str, int]]) -> Mapping[str, tuple[float, float]]:
        missing = [(name, bits) for name, bits in tensors if f"{name}|{bits}" not in self.recorded]
        if missing:
            if self.provider is None:
                raise DataError(
                    f"the run holds no calibrated range for tensor '{missing[0][0]}'; run tune again"
                )
            found = self.provider(model.proto, missing)
            fresh = {f"{name}|{bits}": found[name] for name, bits in missing}
            if self.journal is not None:
                stored = {key: list(value) for key, value in fresh.items()}
                self.journal.append(
                    "ranges", sha256_bytes(canonical_json(sorted(stored)).encode())[:16], stored
                )
            self.recorded.update(fresh)
        return {name: self.recorded[f"{name}|{bits}"] for name, bits in tensors}


def _read(records: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for stored in records.values():
        ranges.update({key: (float(low), float(high)) for key, (low, high) in stored.items()})
    return ranges


def calibrate_once(model: Model, ranges: RecordedRanges, policy: Policy) -> None:
    """Calibrate in one pass whatever a policy that quantizes some of the same layers may ask for.

    Where `policy` quantizes everything, tensors share ranges behind data movement that get ranges of their
    own once a neighbour is excluded; asked for one by one, each would cost a pass over the data.
    """
    graph = import_graph(model)
    found = {id(node): layer for layer, node, home in graph_layers(graph) if home is graph}
    plan = plan_activations(graph, found, policy)
    if plan.tensors:
        ranges(model, sorted((name, plan.schemes[name].bits) for name in plan.tensors))


def recorded_ranges(records: Mapping[str, Any]) -> RecordedRanges:
    """Ranges read from a journal's records, for rebuilding without data."""
    return RecordedRanges(_read(records))


def calibrated(method: str, dataset: Dataset, folder: Path, threads: int) -> CalibratedRanges:
    """The provider behind a run's ranges; statistics are cached in the run folder."""
    return CalibratedRanges(dataset, method, cache=StatisticsCache(folder / "cache"), threads=threads)


@dataclass(frozen=True)
class Prepared:
    """Everything a search stands on."""

    config: TuneConfig
    model: Model
    layers: tuple[Layer, ...]
    data: Dataset
    calibration: Dataset
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, config: TuneConfig) -> Prepared:
        """Load and check model and data; nothing is written yet.

        Raises ProofError where the base recipe would change what the model computes on the data.
        """
        config.validate()
        context = Context()
        schemes = config.scheme_options
        model, layers = prepare_model(config.model, schemes, context)
        if schemes.exclude:
            # A selector that matches nothing is refused here, before the run folder is made.
            select_layers(model, schemes.exclude)
        data, calibration = open_data(config.data_options, model)
        check_metric(open_metric(config.metric, labelled=data.labelled), data, model)
        Reference(model.origin, data).check(model)
        notes = tuple(str(note) for note in context.notes if note.kind in ("info", "refused"))
        warnings = (
            ("calibrated on random data: the accuracy of this run means nothing",)
            if config.data_options.random
            else ()
        )
        return cls(config, model, tuple(layers), data, calibration, notes, warnings)

    @property
    def metric(self) -> Metric:
        """What candidates are judged by. Opened anew each time, so that no object is pickled."""
        return open_metric(self.config.metric, labelled=self.data.labelled)

    def with_warning(self, text: str) -> Prepared:
        return dataclasses.replace(self, warnings=(*self.warnings, text))
