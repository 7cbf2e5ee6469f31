"""The proof: a model to be written does what the model that it came from does, in stock ONNX Runtime.

A rewrite that keeps the function (simplify, fold, smooth, equalize, decode, an opset upgrade) has to agree
with the given model to 1e-4 of the largest output; whatever else was done, the file has to run, to give the
shapes and types that the given model gives, and to be finite wherever that is. On samples of the user's data
where there are any; else on a made-up feed that the given model accepts.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnxq.data import Dataset, input_specs
from onnxq.machine import return_freed_memory
from onnxq.proof.compare import contradicted, nonfinite, sqnr, unlike_shapes
from onnxq.proof.feeds import Feed, Proposal, feeds_of, proposed_feeds, stacked
from onnxq.proof.growth import outgrows
from onnxq.proof.rewrites import Trial, reason
from onnxq.proof.running import (
    MADE_UP_SECONDS,
    RUN_SECONDS,
    Outputs,
    Overtime,
    Refusal,
    Runner,
    telling,
)
from onnxq.proof.trace import first_nonfinite
from onnxq.session import float_weights_only
from passes.core.errors import InvalidModelError, ProofError
from passes.decode import has_packed_weights
from passes.graph.model import Model, every_graph

__all__ = ["Proof", "Reference"]

# Below this the noise is about as large as the outputs are, in dB.
_RUINED = 3.0
# Looking for sizes that the given model accepts.
_SEARCH_SECONDS = 20.0
# The same once some of the outputs tell something.
_MORE_SECONDS = 3.0
# Ops whose results have as many elements as their inputs' values say.
_BY_VALUE = frozenset({"Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Range", "Unique"})


@dataclass(frozen=True)
class Proof:
    """What was tried before a file was saved.

    Attributes:
        feeds: how many feeds both models ran. real: whether they are the user's data.
        sqnr: of the worst float output in dB, None where nothing is to be told.
        untried: why nothing could be compared; empty where it was. notes: what the reader should know.
    """

    feeds: int = 0
    real: bool = False
    sqnr: float | None = None
    untried: str = ""
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """How the file was tried, for people."""
        if self.untried:
            return f"loads; could not be tried: {self.untried}"
        what = "sample" if self.real else "made-up input"
        told = f"compared with the given model on {self.feeds} {what}{'s' * (self.feeds > 1)}"
        if self.sqnr is not None and math.isfinite(self.sqnr):
            told += f", SQNR {self.sqnr:.1f} dB"
            if self.sqnr < _RUINED:
                told += ": little is left of its outputs; measure both with eval"
        return told

    def to_json(self) -> dict[str, Any]:
        finite = self.sqnr is not None and math.isfinite(self.sqnr)
        return {
            "feeds": self.feeds,
            "real": self.real,
            "sqnr": self.sqnr if finite else None,
            "untried": self.untried,
            "notes": list(self.notes),
        }


@dataclass
class Reference:
    """The given model, the feeds that it accepts, and what it answers; worked out when first asked for.

    dataset: the user's data, if any.
    """

    model: Model
    dataset: Dataset | None = None
    feeds: list[Feed] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    untried: str = ""
    seconds: float = 0.0
    _tried: bool = False
    _stacked: int = 0
    _refusal: InvalidModelError | None = None

    @property
    def _limit(self) -> float:
        """Seconds that one run may take."""
        return MADE_UP_SECONDS if self.dataset is None else RUN_SECONDS

    def run(self) -> None:
        """Find feeds and run the given model on them, once."""
        if self._tried:
            return
        self._tried = True
        self._run()
        return_freed_memory()  # before the next session opens

    def _run(self) -> None:
        try:
            runner = Runner(self.model)
        except InvalidModelError as error:
            self._refusal = error
            self.untried = f"the given model does not load ({reason(error, self.model)})"
            return
        try:
            if self.dataset is not None:
                self._run_data(runner, self.dataset)
            else:
                self._run_made_up(runner)
        except Overtime:
            if not self.feeds:
                self.untried = f"the given model did not end within {self._limit:.0f} s"
            return
        if not self.feeds:
            self.untried = "no made-up input was found that the given model runs on; give data"
        elif not any(telling(outputs, any) for outputs in self.outputs):
            what = "the data" if self.dataset is not None else "made-up input; give data"
            self.untried = f"all outputs of the given model are empty, 0, NaN or infinite on {what}"

    def _run_data(self, runner: Runner, dataset: Dataset) -> None:
        """Run the samples, at least one of them, until the time is up; then two of them at once."""
        began, inputs = time.monotonic(), input_specs(self.model.proto)
        for feed in feeds_of(dataset, inputs):
            outputs, took, refusal = _timed(runner, feed, self._limit)
            if refusal:
                raise InvalidModelError(
                    f"{self.model.name}: ONNX Runtime cannot run it on the data: {refusal}"
                )
            self._keep(feed, outputs, took)
            if time.monotonic() - began > _SEARCH_SECONDS:
                return
        two = stacked(self.feeds, inputs)
        outputs, took, _ = _timed(runner, two, self._limit) if two is not None else ({}, 0.0, "")
        if two is not None and outputs:
            self._stacked = 1
            self._keep(two, outputs, took)

    def _run_made_up(self, runner: Runner) -> None:
        """Keep the first feed that runs and tells something, a larger one, and one of another batch."""
        began, first, patience = time.monotonic(), None, _SEARCH_SECONDS
        spare: Proposal | None = None
        for proposal in proposed_feeds(self.model):
            if first is not None and not proposal.is_larger(first):
                continue
            outputs = self._tell(runner, proposal)
            if self.feeds:
                first = first or proposal
            elif outputs:
                spare = spare or proposal
                if telling(outputs, any):
                    patience = _MORE_SECONDS
            if len(self.feeds) == 2 or time.monotonic() - began > patience:
                break
        if not self.feeds and spare is not None:
            first = spare.positive()
            if not self._tell(runner, first) or not self.feeds:
                first = spare
                self._tell(runner, spare, keep=True)
        other = first.of_other_batch() if first is not None else None
        if other is not None:
            self._tell(runner, other)

    def _tell(self, runner: Runner, proposal: Proposal, *, keep: bool = False) -> Outputs:
        """The given model's answer to a made-up feed, kept where every output tells something, or always."""
        if outgrows(self.model, proposal.feed):
            return {}
        outputs, took, _ = _timed(runner, proposal.feed, self._limit)
        if outputs and (keep or telling(outputs, all)):
            self._keep(proposal.feed, outputs, took)
        return outputs

    def _keep(self, feed: Feed, outputs: Outputs, took: float) -> None:
        self.feeds.append(feed)
        self.outputs.append(outputs)
        self.seconds = max(self.seconds, took)

    def corrected(self) -> tuple[Model, tuple[str, ...]]:
        """The given model without declared shapes of outputs that its own answers contradict, and notes."""
        self.run()
        wrong = {
            value.name: told
            for value in self.model.proto.graph.output
            if (told := contradicted(value, [outputs.get(value.name) for outputs in self.outputs]))
        }
        if not wrong:
            return self.model, ()
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        for value in (*proto.graph.output, *proto.graph.value_info):
            if value.name in wrong:
                # The checker wants a shape, so the rank stays, with nothing said of the sizes.
                del value.type.tensor_type.shape.dim[:]
                for _ in self.outputs[0][value.name].shape:
                    value.type.tensor_type.shape.dim.add()
        return self.model.with_proto(proto), tuple(wrong.values())

    def check(self, made: Model) -> None:
        """Hold the rewrites of a model in memory to keeping the function. Raises ProofError for one."""
        self.run()
        if self._refusal is not None:
            raise self._refusal
        Trial(self, made, None).check_rewrites()

    def prove(self, made: Model, path: Path) -> Proof:
        """Compare a written model with this one. path: its file.

        Raises ProofError where it does not do what it must, InvalidModelError where it does not load or run.
        """
        self.run()
        trial = Trial(self, made, path)
        if self._refusal is not None:
            self._check_loads(trial, made)
        else:
            trial.check_rewrites()
        answers = trial.answers(made)
        exact = all(step.exact for step in made.history)
        ranks_only = not exact and _sizes_by_value(self.model)
        for outputs in (answers, *([trial.decoded()] if _opened_otherwise(made) else [])):
            for feed, before, after in zip(self.feeds, self.outputs, outputs, strict=True):
                _check_outputs(self.model, made, feed, before, after, ranks_only)
        if self.untried:
            return Proof(untried=self.untried)
        found = None if exact else sqnr(self.outputs, answers)
        return Proof(len(self.feeds) - self._stacked, self.dataset is not None, found)

    def _check_loads(self, trial: Trial, made: Model) -> None:
        """Of a given model that does not load: what is made of it has to. Raises the given one's error."""
        try:
            trial.answers(made)
        except InvalidModelError:
            assert self._refusal is not None
            raise self._refusal from None


def _timed(runner: Runner, feed: Feed, limit: float) -> tuple[Outputs, float, str]:
    """Outputs, seconds, and why there are no outputs. Raises Overtime."""
    start = time.monotonic()
    try:
        outputs, refusal = runner.run(feed, limit), ""
    except Refusal as error:
        outputs, refusal = {}, str(error)
    return outputs, time.monotonic() - start, refusal


def _opened_otherwise(made: Model) -> bool:
    """Whether `load_session` opens the file in another way than anybody else."""
    return has_packed_weights(made.proto) or float_weights_only(made)


def _sizes_by_value(model: Model) -> bool:
    return any(node.op_type in _BY_VALUE for graph in every_graph(model.proto.graph) for node in graph.node)


def _check_outputs(
    given: Model, made: Model, feed: Feed, before: Outputs, after: Outputs, ranks_only: bool
) -> None:
    told = unlike_shapes(before, after, ranks_only=ranks_only)
    if told is not None:
        raise ProofError(f"{made.name}: {told}; not written")
    name = nonfinite(before, after)
    if name is not None:
        where = first_nonfinite(given, made, feed)
        raise ProofError(
            f"{made.name}: output '{name}' is NaN or infinite where the given model is finite"
            + (f"; {where}" if where else "")
            + "; not written"
        )
