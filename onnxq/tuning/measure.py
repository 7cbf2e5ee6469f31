"""Measure one proposal: build it, evaluate it, weigh it, time it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq._version import __version__
from onnxq.data import Dataset, fit_batch, input_specs
from onnxq.evaluation import Evaluator, Score, Timing, hits_from_text, hits_to_text, interleaved, load_session
from onnxq.files import sha256_bytes
from onnxq.rounding import DataRounder
from onnxq.search.candidate import Candidate, Latency, candidate_key
from onnxq.search.journal import Journal
from onnxq.search.objectives import Objective
from onnxq.search.ranking import Proposal
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.prepare import Prepared, RecordedRanges, calibrate_once
from passes.base import Context
from passes.errors import UserError
from passes.layers import macs
from passes.model import Model, check, is_large, load, on_disk, serialize
from passes.policy import Policy
from passes.quantize import Quantize

__all__ = ["Measurer", "build_model", "make_rounder", "policy_bops", "saved_bytes"]

_FLOAT_BITS = 32
# A timing is repeated while the quartiles of its ratio to float are further apart than this share of it.
_STEADY = 0.2
_TIMING_ROUNDS = 4


def build_model(
    model: Model,
    policy: Policy,
    ranges: RecordedRanges,
    rounder: DataRounder | None = None,
    rounding: Any = "nearest",
) -> Model:
    """The prepared model under a policy. Deterministic: same inputs, same bytes.

    rounder: sees the calibration set; needed for any `rounding` but nearest.
    """
    context = Context(check=False, ranges=ranges, rounder=rounder)
    return dataclasses.replace(Quantize.of(policy), rounding=rounding)(model, context).model


def make_rounder(config: TuneConfig, calibration: Dataset) -> DataRounder | None:
    """What rounds the weights of candidates; None where that looks at no data.

    On one thread, so that a candidate has the same bytes on any number of cores.
    """
    return None if config.rounding == "nearest" else DataRounder(calibration, seed=config.seed, threads=1)


def saved_bytes(model: Model) -> int:
    """Bytes of the model as saved, external data included."""
    if not is_large(model.proto):
        return len(serialize(model))
    with on_disk(model) as path:
        return sum(file.stat().st_size for file in path.parent.iterdir())


def policy_bops(counts: Mapping[str, int], policy: Policy) -> int:
    """Bit operations of one sample: sum of MACs * weight bits * activation bits (SMPQ), float as 32."""

    def bits(scheme: Any) -> int:
        return _FLOAT_BITS if scheme.is_float else int(scheme.bits)

    return sum(
        count * bits(policy[name].weights) * bits(policy[name].activations) for name, count in counts.items()
    )


class Measurer:
    """Turns proposals into candidates. Everything measured is in the journal before it is used."""

    def __init__(
        self,
        prepared: Prepared,
        journal: Journal,
        ranges: RecordedRanges,
        metric: str,
        fingerprint: Mapping[str, str],
    ) -> None:
        config = prepared.config
        self.prepared, self.journal, self.ranges, self.metric = prepared, journal, ranges, metric
        self.model = prepared.model
        self.objectives = {part.strip() for part in config.objectives.split(",")}
        self.evaluator = Evaluator(
            prepared.model,
            prepared.data,
            chunk=config.chunk,
            threads=max(config.threads, 1),
            budget=config.cache_mb * 2**20,
        )
        self.macs = macs(prepared.model)
        self._fingerprint = dict(fingerprint)
        self._rounder = make_rounder(config, prepared.calibration)
        self._float_session: Any = None
        self._last: tuple[str, Model] | None = None
        self._hits: dict[str, Any] = {}
        samples = len(prepared.data)
        # Racing compares hits with smaller candidates: it needs a metric of hits, and nothing that a hopeless
        # metric could be traded against.
        self.races = config.racing and Objective.LATENCY.value not in self.objectives and samples >= 100
        # The recorded hits are those of the headline metric (Score.headline), and only it can be raced on.
        self.races = self.races and metric == ("top1" if prepared.data.labelled else "agreement")
        self.stages = [samples * eighth // 8 for eighth in range(1, 8)] if self.races else []

    def calibrate_once(self, policy: Policy) -> None:
        """Calibrate in one pass whatever a policy of the search may ask for; see prepare.calibrate_once."""
        calibrate_once(self.model, self.ranges, policy)

    def key(self, policy: Mapping[str, Any], mode: str) -> str:
        """The candidate's identity in the journal."""
        keep = {k: v for k, v in self._fingerprint.items() if k not in ("model", "data")}
        return candidate_key(
            model=self._fingerprint["model"],
            policy=policy,
            data=self._fingerprint["data"],
            metric=self.metric,
            device="cpu",
            tool_version=__version__,
            mode=mode,
            config=keep,
        )

    def float_candidate(self) -> Candidate:
        """The float model, measured like any other."""
        key = self.key({}, "float")
        score = self.evaluator.reference()
        self._hits[key] = score.hits
        held = self.journal.get("candidate", key)
        if held is not None:
            return Candidate.from_json(held)
        size = saved_bytes(self.model)
        candidate = Candidate(
            key=key,
            name="float",
            index=0,
            strategy="baseline",
            step=0,
            mode="float",
            policy={},
            metrics=score.values,
            stderr=score.stderr,
            samples=score.samples,
            bytes=size,
            latency=Latency(1.0, 1.0, 1.0, 1.0, 1.0, 0) if "latency" in self.objectives else None,
            bops=policy_bops(self.macs, Policy()),
            sha256=None if is_large(self.model.proto) else sha256_bytes(serialize(self.model)),
        )
        if candidate.latency is not None:
            # One by definition: measured against itself it would be noise that other candidates lose against.
            itself = dataclasses.replace(self.time(self.model), ratio=1.0)
            candidate = dataclasses.replace(candidate, latency=itself)
        self.journal.append("candidate", key, candidate.to_json())
        return candidate

    def finished(self, proposal: Proposal) -> Candidate | None:
        """The candidate of a proposal that an earlier process already finished."""
        held = self.journal.get("candidate", self.key(proposal.policy.to_json(), proposal.mode))
        return None if held is None else Candidate.from_json(held)

    def measure(
        self,
        proposal: Proposal,
        index: int,
        rivals: Sequence[Candidate],
        progress: Callable[[int], None] | None = None,
    ) -> Candidate:
        """Measure and record. One that cannot be built or run is recorded as failed, with the reason."""
        policy = proposal.policy.to_json()
        candidate = Candidate(
            key=self.key(policy, proposal.mode),
            name=proposal.name,
            index=index,
            strategy=proposal.strategy,
            step=proposal.step,
            mode=proposal.mode,
            policy=policy,
            changed=proposal.changed,
        )
        try:
            candidate = self._measured(candidate, proposal, rivals, progress)
        except UserError as error:
            candidate = dataclasses.replace(candidate, status="failed", error=str(error), complete=False)
        self.journal.append("candidate", candidate.key, candidate.to_json())
        return candidate

    def build(self, key: str, policy: Policy) -> Model:
        """The candidate's model; the last one is kept, for the front is usually saved right after."""
        if self._last is None or self._last[0] != key:
            rounding = self.prepared.config.rounding
            self._last = (key, build_model(self.model, policy, self.ranges, self._rounder, rounding))
        return self._last[1]

    def _measured(
        self,
        candidate: Candidate,
        proposal: Proposal,
        rivals: Sequence[Candidate],
        progress: Callable[[int], None] | None,
    ) -> Candidate:
        model = self.build(candidate.key, proposal.policy)
        size = saved_bytes(model)
        bops = policy_bops(self.macs, proposal.policy)
        against = self._rival(size, bops, rivals)

        def hopeless(score: Score) -> bool:
            return against is not None and self._is_dominated(score, against)

        score = self.evaluator.evaluate(model, stages=self.stages, hopeless=hopeless, progress=progress)
        complete = score.samples == len(self.prepared.data)
        if complete:
            self._hits[candidate.key] = score.hits
            self.journal.append("hits", candidate.key, hits_to_text(score.hits))
        latency = self.time(model) if "latency" in self.objectives else None
        return dataclasses.replace(
            candidate,
            metrics=score.values if complete else self._extrapolated(score),
            stderr=score.stderr if complete else {},
            samples=score.samples,
            complete=complete,
            bytes=size,
            latency=latency,
            bops=bops,
            sha256=None if is_large(model.proto) else sha256_bytes(serialize(model)),
        )

    def _rival(self, size: int, bops: int, rivals: Sequence[Candidate]) -> Any:
        """Hits of the best finished candidate that is no larger and no costlier; None where there is none."""
        better = [
            r
            for r in rivals
            if r.usable
            and r.bytes <= size
            and ("bops" not in self.objectives or (r.bops or 0) <= bops)
            and self.metric in r.metrics
        ]
        if not better:
            return None
        return self._recall(max(better, key=lambda r: (r.metrics[self.metric], -r.index)))

    def _recall(self, candidate: Candidate) -> Any:
        if candidate.key not in self._hits:
            text = self.journal.get("hits", candidate.key)
            if text is None:
                return None
            self._hits[candidate.key] = hits_from_text(text, candidate.samples)
        return self._hits[candidate.key]

    @staticmethod
    def _is_dominated(score: Score, rival: Any) -> bool:
        """Whether the candidate cannot get more right than a smaller one, whatever the rest brings.

        Exact: all that it can still gain are the unseen samples that the rival got wrong, and those stand
        first in the evaluator's order.
        """
        seen = score.samples
        ahead = int(score.hits.sum()) - int(rival[:seen].sum())
        return ahead + int((~rival[seen:]).sum()) <= 0

    def _extrapolated(self, score: Score) -> dict[str, float]:
        """The metric over all samples, the unseen ones counted as float has them (they are the sure ones).

        Other metrics of a subset that was chosen for being fragile would mislead, and are left out.
        """
        unseen = self.evaluator.reference().hits[score.samples :]
        total = len(self.prepared.data)
        return {score.headline: (int(score.hits.sum()) + int(unseen.sum())) / total}

    def time(self, model: Model) -> Latency:
        """Latency of one sample, in turns with the float model, on the threads of the configuration."""
        config = self.prepared.config
        threads = config.threads or None
        if self._float_session is None:
            self._float_session = load_session(self.model, threads=threads)
        size = fit_batch(1, input_specs(self.model.proto))
        feed = next(self.prepared.data.batches(size)).inputs
        sessions = [load_session(model, threads=threads), self._float_session]
        ours, theirs = Timing([]), Timing([])
        for _ in range(_TIMING_ROUNDS):
            one, other = interleaved(sessions, feed, runs=config.latency_runs)
            ours, theirs = ours + one, theirs + other
            # Of runs side by side, so that a burst of other load strikes both.
            ratios = Timing((ours.times / theirs.times).tolist())
            low, high = ratios.quartiles
            if high - low <= _STEADY * ratios.median:
                break
        low, high = ours.quartiles
        return Latency(ours.median, low, high, theirs.median, ratios.median, len(ours.times))

    def confirm(self, candidate: Candidate, path: Path) -> Candidate:
        """Check a front member with onnx.checker and measure it again in full from its saved file; once."""
        held = self.journal.get("confirmed", candidate.key)
        if held is None:
            model = load(path)
            check(model)
            score = self.evaluator.confirm(model)
            held = {"values": {k: str(v) for k, v in score.values.items()}, "stderr": score.stderr}
            self.journal.append("confirmed", candidate.key, held)
        values = {name: float(value) for name, value in held["values"].items()}
        return dataclasses.replace(candidate, metrics=values, stderr=held["stderr"])
