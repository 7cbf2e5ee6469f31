"""From a run to its search space: sensitivities measured (or taken from the journal), bytes predicted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxq.allocation.problem import Assignment, Problem
from onnxq.data import Dataset
from onnxq.files import atomic_write_json, canonical_json, sha256_bytes
from onnxq.search.journal import Journal
from onnxq.sensitivity.engine import Settings, measure_sensitivities
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.sensitivity.statistics import Sensitivity
from onnxq.sensitivity.values import PolicyValues, WholeValues
from onnxq.sensitivity.variants import Variant, choice_text
from passes.core.base import RangeProvider
from passes.core.errors import UserError
from passes.graph.jsontext import read_json
from passes.graph.layers import Layer
from passes.graph.model import Model
from passes.policy import FLOAT, LayerPolicy, Policy

__all__ = [
    "SPACE_RECORD",
    "Space",
    "Terms",
    "is_joint",
    "read_space",
    "separately",
    "together",
    "weights_alone",
    "write_space",
]

SPACE_RECORD = "sensitivity"
_VALUE_RECORD = "value"
_VALUE_SAMPLES = 32
# Between a variant and the rounding of its weights, in records.
_ROUNDED = " @ "
# A pair tells nothing where either error is too small to be heard beside rounding.
_LEAST_DAMAGE = 1e-9


Terms = Callable[[LayerPolicy], Sequence[LayerPolicy]]


def weights_alone(choice: LayerPolicy) -> Sequence[LayerPolicy]:
    """What is measured for a choice where all choices have the same activations: its weights, as smoothed."""
    return () if choice.weights.is_float else (_alone(choice),)


def _alone(choice: LayerPolicy) -> LayerPolicy:
    return replace(choice, activations=FLOAT)


def separately(choice: LayerPolicy) -> Sequence[LayerPolicy]:
    """Weights and activations, each alone; their errors are taken to be independent, so that S adds up.

    With float weights only what the layer reads is quantized. That is as it should be: in a policy of many
    layers a tensor takes the scheme of its reader, and would count twice if its writer answered for it too.
    """
    activations = () if choice.activations.is_float else (LayerPolicy(FLOAT, choice.activations),)
    return (*weights_alone(choice), *activations)


def together(choice: LayerPolicy) -> Sequence[LayerPolicy]:
    """The choice as it stands, in one measurement."""
    return () if choice.is_float and choice.smooth == "none" else (choice,)


def is_joint(choices: Iterable[LayerPolicy]) -> bool:
    """Whether activations are searched as well: float aside, there is more than one scheme of them."""
    return len({choice.activations for choice in choices if not choice.is_float}) > 1


@dataclass
class Space:
    """Sensitivities and policy values of one model on one dataset, each measured once and recorded.

    ranges: of activations, for choices that quantize them. rounded: rounds the weights on data; sensitivities
    and values are then those of rounded weights, and stand in the journal under names of their own.
    progress: (what, done, total). deadline: for measuring sensitivities, on time.monotonic's clock; what is
    missing then is estimated (see `_typical`) and counted in `estimated`.
    """

    model: Model
    layers: Sequence[Layer]
    data: Dataset
    journal: Journal
    settings: Settings
    _: KW_ONLY
    ranges: RangeProvider | None = None
    rounded: RoundedWeights | None = None
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    deadline: float | None = None
    estimated: int = 0
    _known: dict[str, Sensitivity] = field(default_factory=dict)
    _values: PolicyValues | WholeValues | None = None

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
            ranges=self.ranges,
            rounded=self.rounded,
            record=lambda entry: self.journal.append(SPACE_RECORD, entry.key + mark, entry.to_json()),
            progress=lambda done, total: self.progress(what, done, total),
            deadline=self.deadline,
        )

    def problem(
        self,
        choices: Sequence[LayerPolicy],
        *,
        file_bytes: int,
        macs: dict[str, int],
        terms: Terms | None = None,
    ) -> Problem:
        """The search space over `choices`. terms: what is measured for a choice, its cost being their sum.

        Left out, it is weights alone, and weights and activations separately where both are searched.
        """
        terms = terms or (separately if is_joint(choices) else weights_alone)
        parts = list(dict.fromkeys(part for choice in choices for part in terms(choice)))
        wanted = [Variant.of(layer.name, part) for layer in self.layers for part in parts]
        self.measure(wanted)
        self.estimated = sum(variant.key not in self._known for variant in wanted)
        guess = self._typical(parts)

        def part_cost(name: str, part: LayerPolicy) -> float:
            entry = self._known.get(Variant.of(name, part).key)
            return guess[part] if entry is None else entry.mse

        def cost(name: str, choice: LayerPolicy) -> float:
            return sum(part_cost(name, part) for part in terms(choice))

        return Problem.of(self.layers, choices, cost, file_bytes=file_bytes, macs=macs)

    def known(self, variant: Variant) -> Sensitivity:
        """What was measured about a variant. Raises KeyError where it was not."""
        return self._known[variant.key]

    def _typical(self, parts: Sequence[LayerPolicy]) -> dict[LayerPolicy, float]:
        """The median sensitivity of each part over the layers that were measured, for those that were not;
        where none was, a tenth per bit of the scheme below it."""
        found: dict[LayerPolicy, float] = {}
        for part in parts:
            keys = (Variant.of(layer.name, part).key for layer in self.layers)
            values = [self._known[key].mse for key in keys if key in self._known]
            bits = min(part.weights.bits, part.activations.bits)
            found[part] = statistics.median(values) if values else 10.0 ** (2 - bits)
        return found

    def with_interactions(self, problem: Problem, assignment: Assignment) -> Problem:
        """The problem with rho of neighbours, each from one measured pair at `assignment`'s choices.

        rho = (S[l, l + 1] - S[l] - S[l + 1]) / (2 sqrt(S[l] S[l + 1])), kept within -0.9 to 0.9.
        """
        pairs: list[Variant | None] = []
        joint = is_joint(problem.choices)
        for at in range(problem.count - 1):
            here, there = (problem.choices[int(assignment[at + step])] for step in (0, 1))
            if here.is_float or there.is_float:
                pairs.append(None)
                continue
            names = problem.layers[at : at + 2]
            if not joint:
                here, there = _alone(here), _alone(there)
            pairs.append(Variant(((names[0], here), (names[1], there))))
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
        """Measured logit MSE of an assignment on a few samples; recorded. Of its weights alone where all
        choices have the same activations, of the whole policy where those are searched as well."""
        policy = problem.policy(assignment)
        if not is_joint(problem.choices):
            policy = Policy({name: _alone(choice) for name, choice in policy.layers.items()})
        texts = {name: choice_text(choice) for name, choice in policy.layers.items()}
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
            if is_joint(problem.choices) or any(choice.smooth != "none" for choice in problem.choices):
                self._values = WholeValues(self.model, subset, self.ranges)
            else:
                budget = self.settings.budget
                self._values = PolicyValues(self.model, self.layers, subset, budget, self.rounded)
        value = self._values.mse(policy)
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
            f"{folder}: holds no sensitivities; onnxq sensitivity with schemes and this folder makes them"
        )
    document = read_json(found[0], "the table of sensitivities", kind="a table of sensitivities")
    try:
        if not isinstance(document, dict):
            raise UserError("is not a table of sensitivities: it is no object")
        return str(document.get("model", "model")), Problem.from_json(document)
    except (OSError, ValueError) as error:
        raise UserError(f"{found[0]}: is not a table of sensitivities ({error})") from None
    except UserError as error:
        raise UserError(f"{found[0]}: {error}") from None
