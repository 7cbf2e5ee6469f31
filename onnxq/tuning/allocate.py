"""The search space of a run's mode: checked against limits first, then measured."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from onnxq.allocation.ilp import ilp
from onnxq.allocation.problem import Problem
from onnxq.data import Dataset, fit_batch, input_specs
from onnxq.rounding.rounder import FIT_BATCH
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.tuning.file_size import with_real_sizes
from onnxq.tuning.groups import RoundingOptions
from onnxq.tuning.layer_ranking import searched_layers
from onnxq.tuning.measure import Measurer
from onnxq.tuning.models import make_rounder, saved_bytes
from onnxq.tuning.prepare import Prepared
from onnxq.tuning.space import Space, write_space
from passes.graph.layers import Layer, macs
from passes.graph.model import Model
from passes.policy import Policy

__all__ = ["check_limits", "make_rounded", "open_space", "parted"]

# Of the calibration samples, those that weights are rounded on for sensitivities.
_FIT_SHARE = 0.6


def check_limits(prepared: Prepared) -> None:
    """Raises UserError, before anything is measured, for limits that no policy of the search keeps, and for a
    table of costs that lacks a layer or a choice."""
    search = prepared.config.search_options
    if not search.limited:
        return
    names = set(searched_layers(prepared))
    layers = [layer for layer in prepared.layers if layer.name in names]
    size, counts = saved_bytes(prepared.model), macs(prepared.model)
    for ladder in prepared.config.scheme_options.ladders.values():
        problem = Problem.of(layers, ladder, lambda *_: 0.0, file_bytes=size, macs=counts)
        if search.goal.budget:
            problem = with_real_sizes(problem, prepared.model)
        for costs in search.costs:
            problem = problem.with_costs(costs)
        ilp(problem, search.goal.budget or math.inf, limits=search.goal.bounds)


def open_space(
    measurer: Measurer,
    layers: Sequence[Layer],
    mode: str,
    folder: Path,
    journal: Journal,
    progress: Callable[[str, int, int], None],
    *,
    float_bytes: int,
    deadline: float | None,
    share: float,
) -> tuple[Problem, Space]:
    """Measures the sensitivities that are missing and writes `space-MODE.json`.

    layers: those in the search. float_bytes: of the float file. share: of the time up to `deadline` that
    sensitivities may take.
    """
    prepared = measurer.prepared
    config = prepared.config
    search, machine = config.search_options, config.machine_options
    choices = config.scheme_options.ladders[mode]
    for activations in dict.fromkeys(choice.activations for choice in choices if not choice.is_float):
        first = next(choice for choice in choices if choice.activations == activations)
        measurer.calibrate_once(Policy({layer.name: first for layer in layers}))
    now = time.monotonic()
    settings = Settings(search.precision, machine.least_threads, machine.cache_bytes // 2, search.goal.seed)
    fit, seen = parted(prepared.calibration, prepared.model, config.rounding_options)
    space = Space(
        prepared.model,
        layers,
        seen,
        journal,
        settings,
        ranges=measurer.ranges,
        rounded=make_rounded(config.rounding_options, prepared.model, fit, progress),
        progress=progress,
        deadline=None if deadline is None else now + share * (deadline - now),
    )
    problem = space.problem(choices, file_bytes=float_bytes, macs=measurer.macs)
    problem = with_real_sizes(problem, prepared.model)
    for costs in search.costs:
        problem = problem.with_costs(costs)
    space.deadline = deadline
    write_space(folder, mode, Path(config.model).name, problem)
    return problem, space


def parted(calibration: Dataset, model: Model, rounding: RoundingOptions) -> tuple[Dataset, Dataset]:
    """(samples to round on, samples to measure sensitivities on): all of them twice with plain rounding.

    A weight of few bits fits the very samples that it was rounded on, the more so the larger the layer is;
    measured on those, sensitivities are too small by factors (benchmarks/RESULTS.md).
    """
    count = int(_FIT_SHARE * len(calibration))
    count -= count % fit_batch(FIT_BATCH, input_specs(model.proto))
    if not rounding.sees_data or count == 0:
        return calibration, calibration
    order = [int(at) for at in np.random.default_rng(rounding.seed).permutation(len(calibration))]
    return calibration.subset(order[:count]), calibration.subset(order[count:])


def make_rounded(
    rounding: RoundingOptions, model: Model, data: Dataset, progress: Callable[[str, int, int], None]
) -> RoundedWeights | None:
    """Weights for sensitivities, rounded as those of the candidates are; None for plain rounding."""
    rounder = make_rounder(rounding, data)
    if rounder is None:
        return None

    def tell(done: int, total: int) -> None:
        progress("rounding", done, total)

    # What rounding can do at its best, on a part of the samples (benchmarks/RESULTS.md).
    return RoundedWeights(model, dataclasses.replace(rounder, damping=None, progress=tell), rounding.method)
