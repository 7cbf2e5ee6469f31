"""The search space of a run's mode, and the allocator that works on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxq.allocation.resources import read_costs
from onnxq.search.candidate import Candidate
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings
from onnxq.tuning.measure import Measurer
from onnxq.tuning.space import Space, write_space
from onnxq.tuning.strategies import Allocator
from passes.layers import Layer
from passes.policy import Policy

__all__ = ["make_allocator"]


def make_allocator(
    measurer: Measurer,
    layers: Sequence[Layer],
    mode: str,
    folder: Path,
    journal: Journal,
    measured: Callable[[], Sequence[Candidate]],
    progress: Callable[[str, int, int], None],
    *,
    file_bytes: int,
    deadline: float | None,
    share: float,
) -> Allocator:
    """Measures the sensitivities that are missing and writes `space-MODE.json`.

    layers: those in the search. file_bytes: of the float file. share: of the time up to `deadline` that
    sensitivities may take.
    """
    prepared = measurer.prepared
    config = prepared.config
    choices = config.ladder(mode)
    for activations in dict.fromkeys(choice.activations for choice in choices if not choice.is_float):
        first = next(choice for choice in choices if choice.activations == activations)
        measurer.calibrate_once(Policy({layer.name: first for layer in layers}))
    now = time.monotonic()
    settings = Settings(config.precision, max(config.threads, 1), config.cache_mb * 2**19, config.seed)
    space = Space(
        prepared.model,
        layers,
        prepared.calibration,
        journal,
        settings,
        measurer.ranges,
        progress=progress,
        deadline=None if deadline is None else now + share * (deadline - now),
    )
    problem = space.problem(choices, file_bytes=file_bytes, macs=measurer.macs)
    for path in config.costs:
        problem = problem.with_costs(read_costs(path))
    space.deadline = deadline
    write_space(folder, mode, Path(config.model).name, problem)
    return Allocator(mode, config, problem, space, measurer.metric, measured, deadline)
