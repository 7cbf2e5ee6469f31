"""From a run to its search space: sensitivities measured (or taken from the journal), bytes predicted."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxq.allocation.problem import Assignment, Problem
from onnxq.data import Dataset
from onnxq.files import atomic_write_json, canonical_json, sha256_bytes
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings, measure_sensitivities
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.sensitivity.statistics import Sensitivity
from onnxq.sensitivity.values import PolicyValues
from onnxq.sensitivity.variants import Variant
from passes.errors import UserError
from passes.layers import Layer
from passes.model import Model
from passes.policy import LayerPolicy, Scheme

__all__ = ["SPACE_RECORD", "Space", "read_space", "write_space"]

SPACE_RECORD = "sensitivity"
_VALUE_RECORD = "value"
_VALUE_SAMPLES = 32
# Between a variant and the rounding of its weights, in records.
_ROUNDED = " @ "
# A pair tells nothing where either error is too small to be heard beside rounding.
_LEAST_DAMAGE = 1e-9


def _weights(choice: LayerPolicy) -> LayerPolicy:
    return LayerPolicy(choice.weights)


@dataclass
class Space:
    """Sensitivities and policy values of one model on one dataset, each measured once and recorded.

    rounded: rounds the weights on data; sensitivities and values are then those of rounded weights, and stand
    in the journal under names of their own. progress: (what, done, total). deadline: on time.monotonic's
    clock, for measuring sensitivities; what is missing then is estimated (see `sensitivity`) and counted in
    `estimated`.
    """

    model: Model
    layers: Sequence[Layer]
    data: Dataset
    journal: Journal
    settings: Settings
    rounded: RoundedWeights | None = None
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    deadline: float | None = None
    estimated: int = 0
    _known: dict[str, Sensitivity] = field(default_factory=dict)
    _values: PolicyValues | None = None

    def __post_init__(self) -> None:
        for record, payload in self.journal.records(SPACE_RECORD).items():
            key, _, rounding = record.partition(_ROUNDED)
            if rounding == self._rounding:
                self._known[key] = Sensitivity.from_json(key, payload)

    @property
    def _rounding(self) -> str:
        """How the weights are rounded, in records: empty for nearest."""
        return "" if self.rounded is None else self.rounded.rounding

    def measure(self, variants: Sequence[Variant], what: str = "sensitivities") -> None:
        """Make sure that every variant is known, as far as the deadline allows."""
        mark = _ROUNDED + self._rounding if self._rounding else ""
        self._known |= measure_sensitivities(
            self.model,
            self.layers,
            self.data,
            variants,
            self.settings,
            known=self._known,
            rounded=self.rounded,
            record=lambda entry: self.journal.append(SPACE_RECORD, entry.key + mark, entry.to_json()),
            progress=lambda done, total: self.progress(what, done, total),
            deadline=self.deadline,
        )

    def problem(self, choices: Sequence[LayerPolicy], *, file_bytes: int, macs: dict[str, int]) -> Problem:
        """The search space over `choices`; their weights alone are what sensitivities are measured for."""
        weights = list(dict.fromkeys(_weights(choice) for choice in choices if not choice.is_float))
        self.measure([Variant.of(layer.name, choice) for layer in self.layers for choice in weights])
        missing = {
            (layer.name, choice)
            for layer in self.layers
            for choice in weights
            if Variant.of(layer.name, choice).key not in self._known
        }
        self.estimated = len(missing)
        guess = self._typical(weights)

        def cost(name: str, choice: LayerPolicy) -> float:
            entry = self._known.get(Variant.of(name, _weights(choice)).key)
            return guess[choice.weights] if entry is None else entry.mse

        return Problem.of(self.layers, choices, cost, file_bytes=file_bytes, macs=macs)

    def known(self, variant: Variant) -> Sensitivity:
        """What was measured about a variant. Raises KeyError where it was not."""
        return self._known[variant.key]

    def _typical(self, choices: Sequence[LayerPolicy]) -> dict[Scheme, float]:
        """The median sensitivity of each scheme over the layers that were measured, for those that were not;
        where none was, a tenth per bit of the scheme below it."""
        found: dict[Scheme, float] = {}
        for choice in choices:
            keys = (Variant.of(layer.name, choice).key for layer in self.layers)
            values = [self._known[key].mse for key in keys if key in self._known]
            fallback = 10.0 ** (2 - choice.weights.bits)
            found[choice.weights] = statistics.median(values) if values else fallback
        return found

    def with_interactions(self, problem: Problem, assignment: Assignment) -> Problem:
        """The problem with rho of neighbours, each from one measured pair at `assignment`'s choices.

        rho = (S[l, l + 1] - S[l] - S[l + 1]) / (2 sqrt(S[l] S[l + 1])), kept within -0.9 to 0.9.
        """
        pairs: list[Variant | None] = []
        for at in range(problem.count - 1):
            here, there = (problem.choices[int(assignment[at + step])] for step in (0, 1))
            if here.is_float or there.is_float:
                pairs.append(None)
                continue
            names = problem.layers[at : at + 2]
            pairs.append(Variant(((names[0], _weights(here)), (names[1], _weights(there)))))
        self.measure([pair for pair in pairs if pair is not None], "pairs of neighbours")
        correlation = np.zeros(problem.count - 1)
        for at, pair in enumerate(pairs):
            if pair is None or pair.key not in self._known:
                continue
            alone = [problem.cost[at + step, int(assignment[at + step])] for step in (0, 1)]
            if min(alone) > _LEAST_DAMAGE:
                extra = self._known[pair.key].mse - sum(alone)
                correlation[at] = np.clip(extra / (2 * np.sqrt(alone[0] * alone[1])), -0.9, 0.9)
        return replace(problem, correlation=correlation)

    def mse(self, problem: Problem, assignment: Assignment) -> float:
        """Measured logit MSE of an assignment's weights on a few samples; recorded."""
        schemes = {
            name: problem.choices[int(k)].weights for name, k in zip(problem.layers, assignment, strict=True)
        }
        texts = {name: str(scheme) for name, scheme in schemes.items()}
        key = sha256_bytes((canonical_json(texts) + self._rounding).encode())[:24]
        held = self.journal.get(_VALUE_RECORD, key)
        if held is not None:
            return float(held)
        if self._values is None:
            if self.rounded is not None:
                # In a resumed run nothing is rounded yet: once for all policies, not once a layer.
                self.rounded.prepare((n, c.weights) for n in problem.layers for c in problem.choices)
            order = np.random.default_rng(self.settings.seed).permutation(len(self.data))
            subset = self.data.subset([int(index) for index in order[:_VALUE_SAMPLES]])
            self._values = PolicyValues(self.model, self.layers, subset, self.settings.budget, self.rounded)
        value = self._values.mse(schemes)
        self.journal.append(_VALUE_RECORD, key, value)
        return value


def write_space(folder: Path, mode: str, model: str, problem: Problem) -> None:
    """`space-MODE.json`: the search space, from which `onnxq allocate` works without data."""
    atomic_write_json(folder / f"space-{mode}.json", {"model": model, "mode": mode, **problem.to_json()})


def read_space(folder: str | Path) -> tuple[str, Problem]:
    """(model's name, problem) of a run folder or of a space file; the first mode's where there are several.

    Raises UserError where there is none or it is damaged.
    """
    path = Path(folder)
    found = sorted(path.glob("space-*.json")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise UserError(
            f"{folder}: holds no sensitivities; make them with onnxq sensitivity --schemes -o {folder}"
        )
    try:
        document = json.loads(found[0].read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise UserError("is no table of sensitivities: it is no object")
        return str(document.get("model", "model")), Problem.from_json(document)
    except (OSError, ValueError) as error:
        raise UserError(f"{found[0]}: is no table of sensitivities ({error})") from None
    except UserError as error:
        raise UserError(f"{found[0]}: {error}") from None
