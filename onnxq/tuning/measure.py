"""Measure one proposal: build it, evaluate it, weigh it, time it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onnxq._version import __version__
from onnxq.data import fit_batch, input_specs
from onnxq.evaluation import Evaluator, Score, Timing, interleaved, load_session
from onnxq.files import sha256_bytes
from onnxq.proof import Reference
from onnxq.search.candidate import Candidate, Latency, candidate_key
from onnxq.search.latency_model import LatencyModel, LayerWork
from onnxq.search.ranking import Proposal
from onnxq.tuning.latencies import DeviceLatencies, Records, merged
from onnxq.tuning.models import build_model, make_rounder, policy_bops, saved_bytes
from onnxq.tuning.prepare import Prepared, RecordedRanges, calibrate_once
from onnxq.tuning.racing import Race, extrapolated, is_dominated
from passes.core.errors import DeviceError, UserError
from passes.graph.layers import macs
from passes.graph.model import Model, check, is_large, load, serialize
from passes.policy import Policy

__all__ = ["Measurer"]

# A timing is repeated while the quartiles of its ratio to float are further apart than this share of it.
_STEADY = 0.2
_TIMING_ROUNDS = 4
# Samples on which a device is compared with the CPU.
_COMPARED = 2


class Evaluations(Protocol):
    """Somewhere else that proposals can be evaluated."""

    def scored(self, proposal: Proposal, rivals: Sequence[Candidate]) -> Candidate:
        """The candidate with all but its latency. Raises UserError where it cannot be built or run."""


class Measurer:
    """Turns proposals into candidates. Everything measured is in the journal before it is used."""

    def __init__(
        self,
        prepared: Prepared,
        journal: Records,
        ranges: RecordedRanges,
        fingerprint: Mapping[str, str],
    ) -> None:
        config = prepared.config
        self.prepared, self.journal, self.ranges, self.metric = prepared, journal, ranges, prepared.metric
        self.model = prepared.model
        self.macs = macs(prepared.model)
        options, machine = config.latency_options, config.machine_options
        self._timed = options.here
        self.devices = DeviceLatencies(
            options.devices,
            prepared.model,
            self._feeds(_COMPARED),
            fit_batch(1, input_specs(prepared.model.proto)),
            options.runs,
            machine.threads,
            journal,
            self._latency_model(),
            options.every,
        )
        self.evaluator = Evaluator(
            prepared.model,
            prepared.data,
            metric=self.metric,
            chunk=machine.chunk,
            threads=machine.least_threads,
            budget=machine.cache_bytes,
        )
        self.fingerprint = dict(fingerprint)
        # Where evaluations are done instead of here (remote.py); None evaluates in this process.
        self.elsewhere: Evaluations | None = None
        self._rounder = make_rounder(config.rounding_options, prepared.calibration)
        self._float_session: Any = None
        self.reference = Reference(self.model, prepared.data)
        self._last: tuple[str, Model] | None = None
        self.race = Race(prepared, self.metric, self.evaluator.headline, journal)

    def calibrate_once(self, policy: Policy) -> None:
        """Calibrate in one pass whatever a policy of the search may ask for; see prepare.calibrate_once."""
        calibrate_once(self.model, self.ranges, policy)

    def key(self, policy: Mapping[str, Any], mode: str) -> str:
        """The candidate's identity in the journal."""
        keep = {k: v for k, v in self.fingerprint.items() if k not in ("model", "data")}
        return candidate_key(
            model=self.fingerprint["model"],
            policy=policy,
            data=self.fingerprint["data"],
            metric=self.metric.name,
            device="cpu",
            tool_version=__version__,
            mode=mode,
            config=keep,
        )

    def float_candidate(self) -> Candidate:
        """The float model, measured like any other."""
        key = self.key({}, "float")
        score = self.evaluator.reference()
        self.race.know(key, score.hits)
        if len(score.hits) != len(self.prepared.data):
            self.race.stop()  # samples are not known one by one
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
            latency=Latency(1.0, 1.0, 1.0, 1.0, 1.0, 0) if self._timed else None,
            bops=policy_bops(self.macs, Policy()),
            sha256=None if is_large(self.model.proto) else sha256_bytes(serialize(self.model)),
        )
        if candidate.latency is not None:
            # One by definition: measured against itself it would be noise that other candidates lose against.
            itself = dataclasses.replace(self.time(self.model), ratio=1.0)
            candidate = dataclasses.replace(candidate, latency=itself)
        candidate = merged(candidate, self.devices.of_float(key))
        self.journal.append("candidate", key, candidate.to_json())
        return candidate

    def finished(self, proposal: Proposal) -> Candidate | None:
        """The candidate of a proposal that an earlier process already finished."""
        held = self.journal.get("candidate", self.key(proposal.policy.to_json(), proposal.mode))
        if held is None:
            return None
        candidate = Candidate.from_json(held)
        for device, latency in candidate.latencies.items():
            self.devices.latency_model.learn(device, candidate.policy, latency)
        return candidate

    def measure(
        self,
        proposal: Proposal,
        index: int,
        rivals: Sequence[Candidate],
        progress: Callable[[int], None] | None = None,
    ) -> Candidate:
        """Measure and record. One that cannot be built or run is recorded as failed, with the reason."""
        candidate = dataclasses.replace(self.blank(proposal), index=index)
        try:
            candidate = self._scored(candidate, proposal, rivals, progress)
            if self.devices.devices:
                model = self.build(candidate.key, proposal.policy)
                candidate = merged(candidate, self.devices.measure(candidate, model))
        except UserError as error:
            candidate = dataclasses.replace(candidate, status="failed", error=str(error), complete=False)
            if isinstance(error, DeviceError) and not error.lasting:
                # Not in the journal: the device may be back when the run is resumed.
                return candidate
        self.journal.append("candidate", candidate.key, candidate.to_json())
        return candidate

    def blank(self, proposal: Proposal) -> Candidate:
        """The candidate of a proposal, with nothing measured yet."""
        policy = proposal.policy.to_json()
        return Candidate(
            key=self.key(policy, proposal.mode),
            name=proposal.name,
            index=0,
            strategy=proposal.strategy,
            step=proposal.step,
            mode=proposal.mode,
            policy=policy,
            changed=proposal.changed,
        )

    def _scored(
        self,
        candidate: Candidate,
        proposal: Proposal,
        rivals: Sequence[Candidate],
        progress: Callable[[int], None] | None,
    ) -> Candidate:
        """All but the latencies on devices; where there are such, what is measured here is measured once."""
        held = self.journal.get("scored", candidate.key)
        if held is not None:
            return Candidate.from_json(held)
        if self.elsewhere is not None:
            found = self.elsewhere.scored(proposal, rivals)
            candidate = dataclasses.replace(found, index=candidate.index)
        else:
            candidate = self.scored_here(candidate, proposal, rivals, progress)
        if self._timed:
            latency = self.time(self.build(candidate.key, proposal.policy))
            candidate = dataclasses.replace(candidate, latency=latency)
        if self.devices.devices:
            self.journal.append("scored", candidate.key, candidate.to_json())
        return candidate

    def _feeds(self, count: int) -> list[Any]:
        """Feeds of one sample each."""
        size = fit_batch(1, input_specs(self.model.proto))
        batches = self.prepared.data.batches(size, 0, min(count * size, len(self.prepared.data)))
        return [batch.inputs for batch in batches]

    def _latency_model(self) -> LatencyModel:
        layers = {
            layer.name: LayerWork(self.macs.get(layer.name, 0), layer.weights, layer.depthwise)
            for layer in self.prepared.layers
        }
        return LatencyModel(layers)

    def build(self, key: str, policy: Policy) -> Model:
        """The candidate's model; the last one is kept, for the front is usually saved right after."""
        if self._last is None or self._last[0] != key:
            rounding = self.prepared.config.rounding_options.method
            self._last = (key, build_model(self.model, policy, self.ranges, self._rounder, rounding))
        return self._last[1]

    def scored_here(
        self,
        candidate: Candidate,
        proposal: Proposal,
        rivals: Sequence[Candidate],
        progress: Callable[[int], None] | None = None,
    ) -> Candidate:
        """Build, weigh and evaluate, in this process; no latency. Raises UserError where that fails."""
        model = self.build(candidate.key, proposal.policy)
        size = saved_bytes(model)
        bops = policy_bops(self.macs, proposal.policy)
        against = self.race.rival(size, bops, rivals)

        def hopeless(score: Score) -> bool:
            return against is not None and is_dominated(score, against, self.metric)

        score = self.evaluator.evaluate(model, stages=self.race.stages, hopeless=hopeless, progress=progress)
        complete = score.samples == len(self.prepared.data)
        if complete:
            self.race.record(candidate.key, score.hits)
        return dataclasses.replace(
            candidate,
            metrics=score.values if complete else extrapolated(score, self.evaluator.reference()),
            stderr=score.stderr if complete else {},
            samples=score.samples,
            complete=complete,
            bytes=size,
            bops=bops,
            sha256=None if is_large(model.proto) else sha256_bytes(serialize(model)),
        )

    def time(self, model: Model) -> Latency:
        """Latency of one sample, in turns with the float model, on the threads of the configuration."""
        config = self.prepared.config
        threads = config.machine_options.threads
        if self._float_session is None:
            self._float_session = load_session(self.model, threads=threads)
        size = fit_batch(1, input_specs(self.model.proto))
        feed = next(self.prepared.data.batches(size)).inputs
        sessions = [load_session(model, threads=threads), self._float_session]
        ours, theirs = Timing([]), Timing([])
        for _ in range(_TIMING_ROUNDS):
            one, other = interleaved(sessions, feed, runs=config.latency_options.runs)
            ours, theirs = ours + one, theirs + other
            # Of runs side by side, so that a burst of other load strikes both.
            ratios = Timing((ours.times / theirs.times).tolist())
            low, high = ratios.quartiles
            if high - low <= _STEADY * ratios.median:
                break
        low, high = ours.quartiles
        return Latency(ours.median, low, high, theirs.median, ratios.median, len(ours.times))

    def confirm(self, candidate: Candidate, path: Path) -> Candidate:
        """Check and prove a front member, and measure it again in full from its saved file; once.

        One that a stock session does not run as it should is failed, with the reason.
        """
        held = self.journal.get("confirmed", candidate.key)
        if held is None:
            model = load(path)
            check(model)
            try:
                self.reference.prove(model, path)
                score = self.evaluator.confirm(model)
            except UserError as error:
                return dataclasses.replace(candidate, status="failed", error=str(error), complete=False)
            held = {"values": {k: str(v) for k, v in score.values.items()}, "stderr": score.stderr}
            self.journal.append("confirmed", candidate.key, held)
        values = {name: float(value) for name, value in held["values"].items()}
        confirmed = dataclasses.replace(candidate, metrics=values, stderr=held["stderr"])
        if all(latency.runs for latency in candidate.latencies.values()):
            return confirmed
        try:
            return merged(confirmed, self.devices.measure(candidate, load(path), predict=False))
        except DeviceError as error:
            return dataclasses.replace(confirmed, status="failed", error=str(error), complete=False)
