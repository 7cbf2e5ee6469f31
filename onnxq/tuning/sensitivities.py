"""All sensitivities of a model in several schemes, kept in a folder that `onnxq allocate` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.allocation.problem import Problem
from onnxq.calibration import CalibratedRanges
from onnxq.data import Dataset, materialise
from onnxq.files import atomic_write, scratch_folder
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings
from onnxq.sensitivity.statistics import Sensitivity
from onnxq.sensitivity.variants import Variant, choice_text, parse_choice
from onnxq.tuning.file_size import with_real_sizes
from onnxq.tuning.models import saved_bytes
from onnxq.tuning.prepare import RecordedRanges, calibrate_once, model_hash
from onnxq.tuning.space import Space, Terms, separately, together, write_space
from passes.core.base import Context
from passes.core.errors import UnsupportedModelError, UserError
from passes.graph.layers import Layer, find_layers, macs
from passes.graph.model import Model
from passes.opset import upgrade
from passes.policy import LayerPolicy, Policy
from passes.preparation import preparation
from passes.quantize import activation_scheme, required_policy_opset, weight_scheme

__all__ = ["SensitivityTable", "sensitivities"]

_MEMORY_FOR_DATA = 2**30


@dataclass(frozen=True)
class SensitivityTable:
    """problem: layers x choices, ready for the allocators. entries: (layer, scheme) -> what was measured.

    A scheme is written `gse4` (weights alone), `float/uint4:asym` (activations alone), or with both.
    """

    problem: Problem
    entries: dict[tuple[str, str], Sensitivity]

    def to_csv(self) -> str:
        """One line a layer and scheme; bytes of the weight where the scheme is a choice of the problem."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["layer", "scheme", "mse", "stderr", "kl", "agreement", "sqnr", "samples", "bytes"])
        schemes = [choice_text(choice) for choice in self.problem.choices]
        for (layer, scheme), e in self.entries.items():
            row, size = self.problem.layers.index(layer), ""
            if scheme in schemes:
                size = f"{self.problem.bytes[row, schemes.index(scheme)]:.0f}"
            sqnr = "" if e.sqnr is None else f"{e.sqnr:.4g}"
            values = [f"{e.mse:.6g}", f"{e.stderr:.3g}", f"{e.kl:.6g}", f"{e.agreement:.4g}", sqnr]
            writer.writerow([layer, scheme, *values, e.samples, size])
        return buffer.getvalue()


def _choices(schemes: Sequence[str], activations: Sequence[str]) -> tuple[list[LayerPolicy], Terms]:
    """The choices of the search space, and what is measured for each."""
    given = list(dict.fromkeys(parse_choice(text) for text in schemes))
    if not activations:
        return given, together
    both = next((choice for choice in given if not choice.activations.is_float), None)
    if both is not None:
        text = choice_text(both)
        raise UserError(f"`schemes` {text}: names activations, and so does `with_activations`; give one")
    kinds = list(dict.fromkeys(activation_scheme(text) for text in activations))
    return [replace(choice, activations=kind) for choice in given for kind in kinds], separately


def _ready(model: Model, choices: Sequence[LayerPolicy]) -> Model:
    """Simplified, BatchNorm folded, and of an opset that holds every choice."""
    prepared = preparation()(model).model
    opset = max((required_policy_opset(Policy({"": choice})) for choice in choices), default=0)
    return upgrade(prepared, opset, "the schemes", Context())


def _calibrate(model: Model, layers: Sequence[Layer], choices: Sequence[LayerPolicy], ranges: Any) -> None:
    # Weights in integers: that is where most tensors get a pair.
    weights = weight_scheme("int8:channel")
    for activations in dict.fromkeys(c.activations for c in choices if c.activations.is_static):
        calibrate_once(model, ranges, Policy.uniform(layers, weights, activations))


def sensitivities(
    model: Model,
    data: Dataset,
    schemes: Sequence[str],
    folder: str | Path | None = None,
    *,
    activations: Sequence[str] = (),
    calibration: str = "percentile:99.99",
    settings: Settings | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> SensitivityTable:
    """S[layer, scheme] of every layer of `model` (BatchNorm is folded first), one layer at a time.

    schemes: of weights (`gse4`), of activations (`float/uint4`) or both (`gse4/uint8`). activations: each
    scheme of weights is paired with each of these; both are measured alone and their S added. calibration:
    how ranges of static activations are found, on `data`.
    folder: keeps a journal, `sensitivity.csv` and `space-weights.json`; asked again with one more scheme,
    only that one is measured. Raises UserError for a scheme that makes no sense, for a model without layers,
    and for a folder that belongs to another model or other data.
    """
    settings = settings or Settings()
    choices, terms = _choices(schemes, activations)
    prepared = _ready(model, choices)
    layers = find_layers(prepared)
    if not layers:
        raise UnsupportedModelError(f"{model.name}: has no quantizable layer")
    fingerprint = {
        "model": model_hash(prepared),
        "data": data.fingerprint(),
        "onnxq version": __version__,
        "--seed": str(settings.seed),
        "--precision": f"{settings.precision:g}",
        "--calibration": calibration,
    }
    with scratch_folder() as temporary:
        home = Path(folder) if folder is not None else temporary
        with Journal(home, fingerprint) as journal:
            held = materialise(data, _MEMORY_FOR_DATA)
            ranges = RecordedRanges.of(journal, CalibratedRanges(held, calibration, threads=settings.threads))
            _calibrate(prepared, layers, choices, ranges)
            space = Space(prepared, layers, held, journal, settings, ranges=ranges, progress=progress)
            size, counts = saved_bytes(prepared), macs(prepared)
            problem = space.problem(choices, file_bytes=size, macs=counts, terms=terms)
            problem = with_real_sizes(problem, prepared)
            parts = dict.fromkeys(part for choice in choices for part in terms(choice))
            entries = {
                (layer.name, choice_text(part)): space.known(Variant.of(layer.name, part))
                for layer in layers
                for part in parts
            }
            table = SensitivityTable(problem, entries)
            write_space(home, "weights", model.name, problem)
            atomic_write(home / "sensitivity.csv", table.to_csv())
            return table
