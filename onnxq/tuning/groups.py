"""The options of a tune, parsed: each group is what one part of the run needs to know.

`TuneConfig` makes them once, when it is made; nobody parses its text again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from onnxq.allocation.resources import LayerCosts, parse_limits, read_costs
from onnxq.search.objectives import Objective
from onnxq.tuning.strategies import Goal, Strategy, open_strategy
from passes.core.errors import UserError
from passes.policy import LayerPolicy

__all__ = [
    "DataOptions",
    "LatencyOptions",
    "MachineOptions",
    "RoundingOptions",
    "SchemeOptions",
    "SearchOptions",
    "WorkerOptions",
]


@dataclass(frozen=True)
class DataOptions:
    """Which samples candidates are evaluated and calibrated on.

    Attributes:
        calibration: of their own; None takes `calibration_samples` out of `evaluation`.
        limit: samples of `evaluation`; None takes all.
        random: whether ranges come from random numbers.
        ranking_samples: of the calibration set, for the layer errors.
    """

    evaluation: str
    calibration: str | None
    preprocess: str | None
    limit: int | None
    calibration_samples: int
    ranking_samples: int
    random: bool
    seed: int
    method: str


@dataclass(frozen=True)
class SchemeOptions:
    """What layers may be quantized to.

    Attributes:
        ladders: by mode, the schemes from cheapest to float.
        smooth: where the base recipe smooths; None where it does not.
        smooth_layers: selectors of layers to smooth. exclude: of layers that stay float.
    """

    ladders: Mapping[str, tuple[LayerPolicy, ...]]
    smooth: Literal["output", "input"] | None
    smooth_layers: tuple[str, ...]
    exclude: tuple[str, ...]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.ladders)


@dataclass(frozen=True)
class RoundingOptions:
    """How the candidates' weights are rounded. damping: None chooses it layer by layer."""

    method: Literal["nearest", "bias", "gptq", "adaround"]
    damping: float | None
    seed: int

    @property
    def sees_data(self) -> bool:
        return self.method != "nearest"


@dataclass(frozen=True)
class LatencyOptions:
    """What latency is measured on. here: on this CPU, too. every: on devices, of so many candidates one."""

    here: bool
    devices: tuple[str, ...]
    runs: int
    every: int


@dataclass(frozen=True)
class WorkerOptions:
    """Where candidates are evaluated."""

    count: int
    scheduler: str

    @property
    def wanted(self) -> bool:
        return bool(self.count or self.scheduler)


@dataclass(frozen=True)
class MachineOptions:
    """What a run may take of this machine. threads: None leaves it to the tool. time_budget: seconds or None.

    chunk: samples per evaluation run, 0 chooses by their size.
    """

    threads: int | None
    chunk: int
    cache_bytes: int
    time_budget: float | None

    @property
    def least_threads(self) -> int:
        """The threads of sessions whose numbers are not a time: one where none were asked for."""
        return self.threads or 1


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, and by which strategy.

    Attributes:
        asked: the strategy's text or object. options: its options that were given one by one.
        cost_files: tables of costs. limits: of those, as written.
        precision: relative standard error of a sensitivity.
    """

    asked: str | Strategy
    options: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    plain: Goal
    cost_files: Sequence[str]
    limits: Sequence[str]
    precision: float
    racing: bool

    def __getstate__(self) -> dict[str, Any]:
        # Workers need no strategy, and could not always import the user's.
        return {key: value for key, value in self.__dict__.items() if key != "strategy"}

    @cached_property
    def strategy(self) -> Strategy:
        """The strategy; the first look imports one that does not come with onnxq."""
        return open_strategy(self.asked, self.options)

    @cached_property
    def costs(self) -> tuple[LayerCosts, ...]:
        """The tables of costs, read at the first look. Raises UserError for one that cannot be read."""
        tables = tuple(read_costs(path) for path in self.cost_files)
        names = [table.name for table in tables]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"`costs`: two tables are called '{twice}'")
        return tables

    @cached_property
    def goal(self) -> Goal:
        """The goal, with the limits on costs. Raises UserError for a limit on what no table is about."""
        bounds = parse_limits(self.limits, [table.name for table in self.costs])
        return replace(self.plain, bounds={**bounds, **self.plain.bounds})

    @property
    def limited(self) -> bool:
        """Whether there is a limit or a table of costs."""
        return bool(self.goal.limits or self.cost_files)
