"""The configuration of a tune: every option resolved, stored with the run, readable again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxq.allocation.resources import parse_limits, read_costs
from onnxq.calibration import parse_method
from onnxq.documents import count, each, flag, number, record, text
from onnxq.files import canonical_json, sha256_bytes
from onnxq.metrics.registry import metric_text, open_metric
from onnxq.rounding import parse_damping
from onnxq.search.objectives import parse_objectives
from passes.core.errors import UserError
from passes.policy import FLOAT, LayerPolicy, Scheme
from passes.quantize import activation_scheme, weight_scheme

__all__ = ["MODES", "TuneConfig"]

MODES = ("static", "dynamic", "weights")
STRATEGIES = ("auto", "ilp", "nsga2", "ranking", "shapley", "threshold")
ROUNDINGS = ("nearest", "bias", "gptq", "adaround")
SMOOTHINGS = ("none", "input", "output", "auto")
# With fewer bit widths to choose from, excluding layers is all that there is to search.
_SEVERAL = 3


def _smooths(weights: Scheme) -> bool:
    """Whether smoothing changes anything: where all channels have one scale."""
    return weights.is_integer and weights.granularity == "tensor"


@dataclass(frozen=True)
class TuneConfig:
    """What to tune, on what, and how.

    weights: the ladder of weight schemes, cheapest first; float is always its end.
    modes: static (calibrated activations), dynamic (at run time), weights (activations stay float).
    metric: a name, `module:Class` or an object (onnxq/metrics); empty chooses by whether the data has labels.
    metric_floor: the goal to report on.
    calibration_samples: taken out of `data` (and then not evaluated on) unless `calibration_data` is given.
    ranking_samples: of the calibration set, for the layer errors. time_budget: seconds, 0 means none.
    chunk: samples per evaluation run, 0 chooses by their size. cache_mb: memory for cached activations.
    strategy: empty chooses, see `chosen_strategy`. tau: of `threshold`, 0 sweeps over it. budget: bytes of
    the file, 0 asks for a front of about `front` points. bops_budget: most bit operations of a sample, 0 for
    any. costs: files of cost tables (onnxq/allocation/resources.py). limits: `latency=3.5`, of such a table.
    activations: of static candidates; several, by commas, are searched together with the weights. precision:
    relative standard error at which a sensitivity is measured well enough, 0 takes every sample.
    permutations, generations: of shapley, nsga2. smooth: before anything else, or `auto`: every scheme with
    one scale a tensor is offered with the layer smoothed, too (site output).
    objectives: as text, `latency@DEVICE` for latency elsewhere than in ONNX Runtime on this CPU.
    latency_every: of so many candidates one is timed on the devices and the others are predicted; the front
    is timed.
    workers: processes that evaluate candidates, 0 for this one alone; scheduler: of a Dask cluster that does.
    rounding: of the candidates' weights, nearest, bias or gptq (on the calibration set); sensitivities are
    of weights rounded so, layer by layer; layer errors are of nearest. damping: of the candidates' rounding,
    a number or `auto`; that of sensitivities is chosen by layer.
    """

    model: str
    data: str
    calibration_data: str = ""
    preprocess: str = ""
    limit: int = 0
    calibration_samples: int = 100
    ranking_samples: int = 32
    seed: int = 0
    strategy: str = ""
    tau: float = 0.0
    budget: float = 0.0
    bops_budget: float = 0.0
    costs: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    front: int = 12
    precision: float = 0.2
    permutations: int = 10
    generations: int = 10
    modes: tuple[str, ...] = ("static", "dynamic")
    weights: tuple[str, ...] = ("int8:channel",)
    activations: str = "uint8"
    calibration: str = "percentile:99.99"
    rounding: str = "nearest"
    damping: str = "1.0"
    smooth: str = "none"
    smooth_layers: str = "depthwise"
    exclude: tuple[str, ...] = ()
    metric: str | object = ""
    metric_floor: float = 0.0
    objectives: str = "metric,bytes,latency"
    latency_runs: int = 20
    latency_every: int = 1
    time_budget: float = 0.0
    chunk: int = 0
    threads: int = 0
    workers: int = 0
    scheduler: str = ""
    cache_mb: int = 1024
    racing: bool = True
    random_calibration: bool = False

    def validate(self) -> None:
        """Raises UserError for the first option that makes no sense."""
        parse_objectives(self.objectives)
        parse_method(self.calibration)
        open_metric(self.metric)
        if self.strategy and self.strategy not in STRATEGIES:
            raise UserError(f"--strategy {self.strategy}: is not one of {', '.join(STRATEGIES)}")
        for mode in self.modes:
            if mode not in MODES:
                raise UserError(f"--mode {mode}: is not one of {', '.join(MODES)}")
        if not self.modes or not self.weights:
            raise UserError("nothing to tune: give at least one --mode and one --weights")
        if self.rounding not in ROUNDINGS:
            raise UserError(f"--rounding {self.rounding}: is not one of {', '.join(ROUNDINGS)}")
        parse_damping(self.damping)
        self._check_smoothing()
        for name in ("tau", "budget", "bops_budget", "precision"):
            if getattr(self, name) < 0:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name):g}: must not be negative")
        self._check_resources()
        positive = (
            "calibration_samples",
            "ranking_samples",
            "latency_runs",
            "latency_every",
            "front",
            "permutations",
        )
        for name in (*positive, "generations"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        for mode in self.modes:
            self.ladder(mode)

    def _check_smoothing(self) -> None:
        """Raises UserError where smoothing layer by layer has no meaning or no measure."""
        if self.smooth not in SMOOTHINGS:
            raise UserError(f"--smooth {self.smooth}: is not one of {', '.join(SMOOTHINGS)}")
        if self.smooth != "auto":
            return
        if not any(_smooths(weight_scheme(text)) for text in self.weights):
            raise UserError("--smooth auto: serves weights of one scale; give --weights such as int8:tensor")
        if self.chosen_strategy == "ranking":
            raise UserError("--smooth auto: ranking has one scheme a layer; give --strategy auto or ilp")
        if self.rounding != "nearest":
            raise UserError(
                f"--smooth auto: is measured with weights rounded to nearest, not by {self.rounding}; give "
                "--rounding nearest, or --smooth output"
            )

    def _check_resources(self) -> None:
        """Raises UserError where costs, limits or several activations do not go with the strategy."""
        names = [read_costs(path).name for path in self.costs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"--costs: two tables are called '{twice}'")
        parse_limits(self.limits, names)
        if self.tau and self.chosen_strategy not in ("threshold", "auto"):
            raise UserError(f"--tau: {self.chosen_strategy} knows no tau; give --strategy threshold")
        if self.chosen_strategy == "shapley":
            for mode in self.modes:
                if len(self.ladder(mode)) < 3:
                    raise UserError(
                        "--strategy shapley: needs at least two --weights schemes that are not float"
                    )
        if self.chosen_strategy == "ranking":
            for name in ("budget", "bops_budget", "costs", "limits"):
                if getattr(self, name):
                    option = name.replace("_", "-").replace("limits", "cost-limit")
                    raise UserError(f"--{option}: ranking knows no limits; give --strategy auto or ilp")
            if len(self.activation_texts) > 1:
                given = f"--activations {self.activations}"
                raise UserError(f"{given}: ranking searches weights alone; give --strategy auto or ilp")

    @property
    def bounds(self) -> dict[str, float]:
        """Limits on resources by name, the size of the file aside."""
        held = parse_limits(self.limits, [read_costs(path).name for path in self.costs])
        return held | ({"bops": self.bops_budget} if self.bops_budget else {})

    @property
    def activation_texts(self) -> tuple[str, ...]:
        """The schemes of static activations, as written."""
        return tuple(part.strip() for part in self.activations.split(",") if part.strip()) or ("uint8",)

    def ladder(self, mode: str) -> list[LayerPolicy]:
        """Schemes from cheapest to float in one mode; with several activations every pair."""
        kinds = [activation_scheme(text) for text in self.activation_texts]
        if mode == "weights":
            kinds = [FLOAT]
        if mode == "dynamic":
            kinds = [dataclasses.replace(activation_scheme("uint8"), dynamic=True)]
        steps = [LayerPolicy(weight_scheme(text), kind) for text in self.weights for kind in kinds]
        if self.smooth == "auto":
            steps += [dataclasses.replace(c, smooth="output") for c in steps if _smooths(c.weights)]
        return [*dict.fromkeys(steps), LayerPolicy()]

    @property
    def chosen_strategy(self) -> str:
        """The strategy; where none is given, `auto` for three bit widths or more, for any limit
        and for smoothing layer by layer, `threshold` for a tau, else `ranking`."""
        if self.strategy:
            return self.strategy
        if self.tau:
            return "threshold"
        if self.budget or self.bops_budget or self.costs or self.limits or self.smooth == "auto":
            return "auto"
        widths = {weight_scheme(text).bits for text in self.weights}
        several = len(widths) >= _SEVERAL or len(self.activation_texts) > 1
        return "auto" if several else "ranking"

    @property
    def smooth_selectors(self) -> tuple[str, ...]:
        return tuple(part for part in self.smooth_layers.split(",") if part)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a metric object becomes text."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        values["metric"] = metric_text(self.metric)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuneConfig:
        """Raises UserError for an unknown key."""
        known = {spec.name for spec in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UserError(f"configuration: unknown key '{unknown[0]}'; known: {', '.join(sorted(known))}")
        try:
            _SHAPE(dict(data), "")
        except ValueError as error:
            raise UserError(f"configuration: {error}") from None
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    def fingerprint(self) -> dict[str, str]:
        """The options that decide the numbers, as text, for the journal."""
        # Tables of costs count by what is in them, and only where the search has any.
        free = {
            "model",
            "data",
            "calibration_data",
            "time_budget",
            "threads",
            "cache_mb",
            "metric_floor",
            "costs",
            "workers",
            "scheduler",
        }
        values = {**self.to_json(), "strategy": self.chosen_strategy}
        found = {f"--{key.replace('_', '-')}": str(value) for key, value in values.items() if key not in free}
        tables = [read_costs(path).to_json() for path in self.costs]
        return found | ({"--costs": sha256_bytes(canonical_json(tables).encode())} if tables else {})


_KINDS = {str: text, bool: flag, int: count, float: number}
_TEXTS = each(text)
_SHAPE = record(
    {"model": text, "data": text},
    {
        spec.name: _KINDS.get(type(spec.default), _TEXTS)
        for spec in dataclasses.fields(TuneConfig)
        if spec.default is not dataclasses.MISSING
    },
)
