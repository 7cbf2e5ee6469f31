"""Rewrites that keep the function, held to it; where one does not, it is found and named."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from onnxq.machine import return_freed_memory
from onnxq.proof.compare import DECIDED, EXACT, MOVES, apart, moved, own_noise, unlike_shapes
from onnxq.proof.feeds import Feed
from onnxq.proof.running import RUN_SECONDS, Outputs, Overtime, Refusal, Runner, numeric
from onnxq.session import plain_session
from passes.core.errors import InvalidModelError, ProofError
from passes.graph.model import Model

__all__ = ["Answered", "Trial", "reason"]

# A written model may take so many times as long as the given one, and at least this long, before it is
# taken for one that hangs.
_SLOWER, _LEAST_SECONDS = 200.0, 30.0
# What a rewrite may add to what the given model differs from itself.
_NOISE = 4.0


class Answered(Protocol):
    """A model that has been run: the feeds, its outputs for each, and the longest run in seconds."""

    model: Model
    feeds: list[Feed]
    outputs: list[Outputs]
    seconds: float


def reason(error: Exception, model: Model) -> str:
    """The error without the words that a sentence around it says again."""
    return str(error).removeprefix(f"{model.name}: ").removeprefix("ONNX Runtime cannot load it: ")


class Trial:
    """A rewritten model and those that led to it, on the feeds of the given one. path: its file, if any."""

    def __init__(self, given: Answered, made: Model, path: Path | None) -> None:
        self.given, self.made, self.path = given, made, path
        self._answers: dict[int, list[Outputs]] = {}

    def answers(self, model: Model) -> list[Outputs]:
        """A model's outputs on every feed, in a stock session.

        Raises InvalidModelError where it does not load or run, ProofError where it does not end.
        """
        if id(model) not in self._answers:
            self._answers[id(model)] = self._run(model)
        return self._answers[id(model)]

    def decoded(self) -> list[Outputs]:
        """The written model's outputs where `load_session` opens it. Raises as `answers` does."""
        return self._run(self.made, ours=True)

    def _run(self, model: Model, *, ours: bool = False) -> list[Outputs]:
        try:
            return self._answered(Runner(model, self.path if model is self.made else None, ours=ours))
        finally:
            return_freed_memory()  # before the next session opens

    def _answered(self, runner: Runner) -> list[Outputs]:
        limit = max(_LEAST_SECONDS, self.given.seconds * _SLOWER)
        name = self.made.name
        try:
            return [runner.run(feed, limit) for feed in self.given.feeds]
        except Overtime:
            raise ProofError(
                f"{name}: did not end within {limit:.0f} s on an input that the given model ran in "
                f"{self.given.seconds:.1f} s; not written"
            ) from None
        except Refusal as error:
            raise InvalidModelError(f"{name}: ONNX Runtime loads it but cannot run it: {error}") from None

    def check_rewrites(self) -> None:
        """Hold every run of rewrites that keep the function to it. Raises ProofError that names the one."""
        history = self.made.history
        models = [step.before for step in history] + [self.made]
        start = 0
        while start < len(history):
            stop = start
            while stop < len(history) and history[stop].exact:
                stop += 1
            ends = [index for index in range(start + 1, stop + 1) if models[index] is not None]
            first = models[start]
            if first is not None and ends:
                self._check_run(first, models, ends)
            start = stop + 1

    def _check_run(self, first: Model, models: Sequence[Model | None], ends: Sequence[int]) -> None:
        """Compare the last model of a run with its first; where they differ, find the rewrite."""
        is_given = first is self.given.model or first is self.made.history[0].before
        before = self.given.outputs if is_given else self.answers(first)
        told = self._worst(first, before, models[ends[-1]])
        if told is None:
            return
        good, guilty = next(i for i, each in enumerate(models) if each is first), ends[-1]
        for index in ends[:-1]:
            earlier = self._worst(first, before, models[index])
            if earlier is not None:
                guilty, told = index, earlier
                break
            good = index
        # More than one where the models between them were too large to keep.
        names = " | ".join(step.name for step in self.made.history[good:guilty])
        raise ProofError(
            f"{self.given.model.name}: '{names}' would change what the model computes: {told}; not written"
        )

    def _worst(self, first: Model, before: list[Outputs], model: Model | None) -> str | None:
        """How `model` fails to keep the function of `first`; None where it keeps it."""
        assert model is not None  # only models that were kept are compared
        try:
            after = self.answers(model)
        except InvalidModelError as error:
            return reason(error, model)
        for feed, one, other in zip(self.given.feeds, before, after, strict=True):
            noise = _Noise(first, feed, one)
            for name in one:
                told = _changed(name, one, other, noise)
                if told is not None:
                    return told
        return None


class _Noise:
    """What float arithmetic alone does to each output of a model on a feed; run when first asked for."""

    def __init__(self, model: Model, feed: Feed, answer: Outputs) -> None:
        self._model, self._feed, self._answer = model, feed, answer
        self._runs: list[Outputs] | None = None

    def of(self, name: str) -> float:
        """The largest distance of an output of the model from itself; infinite where its shape varies."""
        if self._runs is None:
            self._runs = self._repeated()
        return own_noise(self._answer[name], [run[name] for run in self._runs])

    def _repeated(self) -> list[Outputs]:
        """What the model answers unoptimised, once more, and to inputs that moved a little.

        An output that is decided by floats has moved further than one of floats: few of them lie at a border.
        """
        plain = plain_session(self._model)
        names = [value.name for value in plain.get_outputs()]
        outputs: list[Outputs] = [dict(zip(names, plain.run(None, self._feed), strict=True))]
        runner = Runner(self._model)
        with contextlib.suppress(Refusal, Overtime):
            outputs.append(runner.run(self._feed, RUN_SECONDS))
            outputs.extend(runner.run(moved(self._feed, by), RUN_SECONDS) for by in MOVES)
            further = runner.run(moved(self._feed, DECIDED), RUN_SECONDS)
            outputs.append(self._answer | {name: further[name] for name in names if _decides(further[name])})
        return outputs


def _decides(value: Any) -> bool:
    """Whether an output is anything but floats: decisions on them, then, which jump."""
    array = numeric(value)
    return array is None or array.dtype.kind not in "fV"


def _changed(name: str, before: Outputs, after: Outputs, noise: _Noise) -> str | None:
    """How an output is not what it was; None where it is, or where the given model does as much itself."""
    shapes = unlike_shapes({name: before[name]}, after)
    if shapes is not None:
        return shapes if name not in after or math.isfinite(noise.of(name)) else None
    found = apart(before[name], after[name])
    if found <= (0 if _decides(before[name]) else EXACT) or found <= _NOISE * noise.of(name):
        return None
    if _decides(before[name]) or not math.isfinite(found):
        return f"output '{name}' has other values"
    return f"output '{name}' differs by {found:.1g} of its largest value"
