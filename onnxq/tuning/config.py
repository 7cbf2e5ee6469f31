"""The configuration of a tune: every option as it was written, checked, and parsed into groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from onnxq.calibration import parse_method
from onnxq.documents import count, each, flag, number, record, text
from onnxq.files import canonical_json, sha256_bytes
from onnxq.metrics.registry import metric_text, open_metric
from onnxq.rounding import parse_damping
from onnxq.search.objectives import parse_objectives
from onnxq.tuning.checks import check_smoothing, check_strategy_with
from onnxq.tuning.groups import (
    DataOptions,
    LatencyOptions,
    MachineOptions,
    RoundingOptions,
    SchemeOptions,
    SearchOptions,
    WorkerOptions,
)
from onnxq.tuning.ladders import ladders, schemes_in
from onnxq.tuning.strategies import (
    STRATEGIES,
    Goal,
    Strategy,
    check_strategy,
    readers_of,
    strategy_name,
    strategy_text,
)
from passes.core.errors import UserError
from passes.core.fields import Option, When, check_fields, declared
from passes.policy import LayerPolicy
from passes.quantize import weight_scheme

__all__ = ["MODES", "TuneConfig"]

Mode = Literal["static", "dynamic", "weights"]
MODES: tuple[str, ...] = get_args(Mode)
# With fewer bit widths to choose from, excluding layers is all that there is to search.
_SEVERAL = 3
# Options that decide where and how long, and not what comes out.
_FREE = frozenset({"model", "data", "calibration_data", "costs", "time_budget", "metric_floor"})
_FREE |= {"threads", "cache_mb", "workers", "scheduler"}

_Amount = Annotated[float, Option(least=0)]
_Count = Annotated[int, Option(least=0)]
_Positive = Annotated[int, Option(least=1)]
_STATIC = When("modes", "static")
_FRONT, _TIMED = When("budget", absent=True), When("objectives", "latency", "latency@*")
_Rounding = Literal["nearest", "bias", "gptq", "adaround"]
_PRECISION = "Relative standard error that a sensitivity is measured to; 0 takes every sample."
_ACTIVATIONS = (
    "Scheme of static activations; several, as in uint8,uint4, are searched together with the weights."
)
_ROUNDING = (
    "How the candidates' weights are rounded. gptq looks at the calibration set (slower to build, far better "
    "below 6 bits), adaround learns on top of it (slower still), bias corrects biases alone."
)
_FLOOR = "Goal in the metric's own unit, as in 0.75 for 75 %: exit code 3 when nothing reaches it."
_OBJECTIVES = "Two or more of metric, bytes, latency, latency@DEVICE (repeatable, see `onnxq devices`), bops."
_EVERY = "On devices time one candidate in so many, predict the others, and time the front."
_SCHEDULER = "Evaluate on the Dask cluster of tcp://HOST:PORT."
_RANDOM = "Calibrate on random numbers; the report says so."


@dataclass(frozen=True)
class TuneConfig:
    """What to tune, on what, and how. Wrong words and numbers are refused when it is made.

    weights: the ladder of weight schemes, cheapest first; float is always its end.
    modes: static (calibrated activations), dynamic (at run time), weights (activations stay float).
    metric: a name, `module:Class` or an object (onnxq/metrics); empty chooses by whether the data has labels.
    metric_floor: the goal to report on.
    calibration_samples: taken out of `data` (and then not evaluated on) unless `calibration_data` is given.
    ranking_samples: of the calibration set, for the layer errors. time_budget: seconds, 0 means none.
    chunk: samples per evaluation run, 0 chooses by their size. cache_mb: memory for cached activations.
    strategy: a name, `name{option=value}`, `module:Class` or an object (onnxq/tuning/strategies); empty
    chooses, see `chosen_strategy`. tau, permutations, generations: options of strategies that have them.
    budget: bytes of the file, 0 asks for a front of about `front` points. bops_budget: most bit operations of
    a sample, 0 for any. costs: files of cost tables (onnxq/allocation/resources.py). limits: `latency=3.5`,
    of such a table.
    activations: of static candidates; several, by commas, are searched together with the weights. precision:
    relative standard error at which a sensitivity is measured well enough, 0 takes every sample.
    smooth: before anything else, or `auto`: every scheme with one scale a tensor is offered with the layer
    smoothed, too (site output).
    objectives: as text, `latency@DEVICE` for latency elsewhere than in ONNX Runtime on this CPU.
    latency_every: of so many candidates one is timed on the devices and the others are predicted; the front
    is timed.
    workers: processes that evaluate candidates, 0 for this one alone; scheduler: of a Dask cluster that does.
    rounding: of the candidates' weights, nearest, bias or gptq (on the calibration set); sensitivities are
    of weights rounded so, layer by layer; layer errors are of nearest. damping: of the candidates' rounding,
    a number or `auto`; that of sensitivities is chosen by layer.

    The fields whose names end in `_options` are the same, parsed; parts of a run read those.
    """

    model: str
    data: str
    calibration_data: Annotated[str, Option(when=When("random_calibration", absent=True))] = ""
    preprocess: str = ""
    limit: _Count = 0
    calibration_samples: _Positive = 100
    ranking_samples: Annotated[int, Option("Samples for the layer errors.", least=1)] = 32
    seed: int = 0
    strategy: str | Strategy = ""
    tau: _Amount = 0.0
    budget: _Amount = 0.0
    bops_budget: Annotated[float, Option("Most bit operations of a sample, as in 6e9.", least=0)] = 0.0
    costs: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    front: Annotated[int, Option("Points that a strategy proposes.", least=1, when=_FRONT)] = 12
    precision: Annotated[float, Option(_PRECISION, least=0)] = 0.2
    permutations: _Positive = 10
    generations: _Positive = 10
    modes: tuple[Mode, ...] = ("static", "dynamic")
    weights: tuple[str, ...] = ("int8:channel",)
    activations: Annotated[str, Option(_ACTIVATIONS, when=_STATIC)] = "uint8"
    calibration: Annotated[str, Option(when=_STATIC)] = "percentile:99.99"
    rounding: Annotated[_Rounding, Option(_ROUNDING)] = "nearest"
    damping: Annotated[str, Option(when=When("rounding", "gptq", "adaround"))] = "1.0"
    smooth: Literal["none", "input", "output", "auto"] = "none"
    smooth_layers: Annotated[str, Option(when=When("smooth", "output", "input"))] = "depthwise"
    exclude: tuple[str, ...] = ()
    metric: str | object = ""
    metric_floor: Annotated[float, Option(_FLOOR)] = 0.0
    objectives: Annotated[str, Option(_OBJECTIVES)] = "metric,bytes,latency"
    latency_runs: Annotated[int, Option("Runs of a timing.", least=1, when=_TIMED)] = 20
    latency_every: Annotated[int, Option(_EVERY, least=1, when=When("objectives", "latency@*"))] = 1
    time_budget: _Amount = 0.0
    chunk: Annotated[int, Option("Samples per evaluation run; 0 goes by their size.", least=0)] = 0
    threads: _Count = 0
    workers: Annotated[int, Option("Evaluate candidates in so many processes.", least=0)] = 0
    scheduler: Annotated[str, Option(_SCHEDULER, when=When("workers", absent=True))] = ""
    cache_mb: Annotated[int, Option("Megabytes of memory for activations.", least=0)] = 1024
    racing: bool = True
    random_calibration: Annotated[bool, Option(_RANDOM)] = False
    data_options: DataOptions = field(init=False, repr=False, compare=False)
    scheme_options: SchemeOptions = field(init=False, repr=False, compare=False)
    search_options: SearchOptions = field(init=False, repr=False, compare=False)
    rounding_options: RoundingOptions = field(init=False, repr=False, compare=False)
    latency_options: LatencyOptions = field(init=False, repr=False, compare=False)
    worker_options: WorkerOptions = field(init=False, repr=False, compare=False)
    machine_options: MachineOptions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises UserError for the first option that makes no sense."""
        check_fields(self)
        for name in _KNOWN:
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.modes or not self.weights:
            raise UserError("nothing to tune: give at least one of `modes` and one of `weights`")
        if isinstance(self.strategy, str) and self.strategy:
            check_strategy(self.strategy)
        parse_method(self.calibration)
        for name, group in self._groups().items():
            object.__setattr__(self, name, group)
        check_smoothing(self.smooth, self.weights, self.rounding)
        kind = STRATEGIES.get(strategy_name(self.search_options.asked))
        if kind is not None:
            self._check_strategy()

    def validate(self) -> None:
        """What can be said only with other files and code: of the tables of costs, a metric or a strategy of
        the user's. Raises UserError for the first that makes no sense."""
        open_metric(self.metric)
        self._check_strategy()
        _ = self.search_options.goal

    def _check_strategy(self) -> None:
        """Raises UserError for what the strategy cannot do with the other options."""
        given = {name: (getattr(self, name), spec.default) for name, spec in _KNOWN.items()}
        check_strategy_with(self.search_options.strategy, given, self.scheme_options)

    def _groups(self) -> dict[str, object]:
        """Every group, by the name of its field."""
        objectives = parse_objectives(self.objectives)
        named = {objective.value for objective in objectives}
        axes = tuple(name for name in ("bytes", "bops") if name in named) or ("bytes",)
        bounds = {"bops": self.bops_budget} if self.bops_budget else {}
        goal = Goal(self.front, self.budget, bounds, axes, self.metric_floor, self.seed)
        given = {name: getattr(self, name) for name in _KNOWN if readers_of(name)}
        smooth = self.smooth if self.smooth in ("output", "input") else None
        return {
            "data_options": DataOptions(
                self.data,
                self.calibration_data or None,
                self.preprocess or None,
                self.limit or None,
                self.calibration_samples,
                self.ranking_samples,
                self.random_calibration,
                self.seed,
                self.calibration,
            ),
            "scheme_options": SchemeOptions(
                ladders(self.modes, self.weights, self.activations, smoothed=self.smooth == "auto"),
                smooth,
                tuple(part for part in self.smooth_layers.split(",") if part),
                self.exclude,
            ),
            "search_options": SearchOptions(
                self._chosen(),
                given,
                objectives,
                goal,
                self.costs,
                self.limits,
                self.precision,
                self.racing,
            ),
            "rounding_options": RoundingOptions(self.rounding, parse_damping(self.damping), self.seed),
            "latency_options": LatencyOptions(
                "latency" in named,
                tuple(objective.device for objective in objectives if objective.device),
                self.latency_runs,
                self.latency_every,
            ),
            "worker_options": WorkerOptions(self.workers, self.scheduler),
            "machine_options": MachineOptions(
                self.threads or None, self.chunk, self.cache_mb * 2**20, self.time_budget or None
            ),
        }

    def ladder(self, mode: str) -> list[LayerPolicy]:
        """Schemes from cheapest to float in one mode; with several activations every pair."""
        return list(self.scheme_options.ladders[mode])

    @property
    def chosen_strategy(self) -> str:
        """The strategy, as text; where none is given, `auto` for three bit widths or more, for any limit
        and for smoothing layer by layer, `threshold` for a tau, else `ranking`."""
        return strategy_text(self._chosen())

    def _chosen(self) -> str | Strategy:
        if self.strategy:
            return self.strategy
        if self.tau:
            return "threshold"
        if self.budget or self.bops_budget or self.costs or self.limits or self.smooth == "auto":
            return "auto"
        widths = {weight_scheme(text).bits for text in self.weights}
        several = len(widths) >= _SEVERAL or len(schemes_in(self.activations)) > 1
        return "auto" if several else "ranking"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; objects become text."""
        values = {name: getattr(self, name) for name in _KNOWN}
        values["metric"], values["strategy"] = metric_text(self.metric), strategy_text(self.strategy)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuneConfig:
        """Raises UserError for an unknown key."""
        unknown = sorted(set(data) - _KNOWN.keys())
        if unknown:
            raise UserError(f"configuration: unknown key '{unknown[0]}'; known: {', '.join(sorted(_KNOWN))}")
        try:
            _SHAPE(dict(data), "")
        except ValueError as error:
            raise UserError(f"configuration: {error}") from None
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    def fingerprint(self) -> dict[str, str]:
        """The options that decide the numbers, as text, for the journal."""
        # Tables of costs count by what is in them, and only where the search has any.
        values = {**self.to_json(), "strategy": self.chosen_strategy}
        decisive = {key: str(value) for key, value in values.items() if key not in _FREE}
        # As they are typed: runs of earlier versions are known by these.
        marks = {f"--{key.replace('_', '-')}": value for key, value in decisive.items()}
        tables = [table.to_json() for table in self.search_options.costs]
        return marks | ({"--costs": sha256_bytes(canonical_json(tables).encode())} if tables else {})


_KNOWN = declared(TuneConfig)
_KINDS = {str: text, bool: flag, int: count, float: number}
_SHAPE = record(
    {"model": text, "data": text},
    {
        name: _KINDS.get(type(spec.default), each(text))
        for name, spec in _KNOWN.items()
        if spec.default is not dataclasses.MISSING
    },
)
