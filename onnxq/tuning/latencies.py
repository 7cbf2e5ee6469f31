"""Latency on named devices (`--objectives latency@DEVICE`): measured in turns with the float model,
journalled.

What one device has measured is on the disk before the next one is asked, so that a device that dies costs
nothing but its own measurement. Its failure is kept out of the journal: the same command takes the
candidate up again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from onnxq.runners import Feed, Program, Runner, open_runner
from onnxq.runners.agreement import reference_outputs, refuse_disagreement
from onnxq.runners.timing import Comparison, compare
from onnxq.search.candidate import Candidate, Latency
from onnxq.search.latency_model import LatencyModel
from passes.core.errors import DeviceError
from passes.graph.model import Model

__all__ = ["DeviceLatencies", "Outage", "Records", "check_devices", "merged"]


class Records(Protocol):
    """What is remembered, as a run's Journal does."""

    def get(self, kind: str, key: str) -> Any | None:
        """The latest payload under `kind` and `key`."""

    def append(self, kind: str, key: str, payload: Any) -> None:
        """Record a payload."""


_KIND = "latency"
_WARMUP = 3


@dataclass(frozen=True)
class Outage:
    """A candidate that a device failed on in this process."""

    candidate: str
    problem: str


@dataclass
class _Place:
    """A device that is open, with the float model on it. before: the float model's first median, in ms."""

    runner: Runner
    baseline: Program
    before: float


@dataclass
class DeviceLatencies:
    """The devices of a run.

    Attributes:
        devices: device strings, in the order of the objectives.
        model: float, prepared. feeds: what is run; the first one is timed, all are compared with the CPU.
        every: of so many candidates one is measured, the others are predicted (latency_model.py); 1 measures
        all. told: gets warnings (throttling, nodes that fell back), each once.
    """

    devices: Sequence[str]
    model: Model
    feeds: Sequence[Feed]
    batch: int
    runs: int
    threads: int | None
    journal: Records
    latency_model: LatencyModel
    every: int = 1
    told: Callable[[str], None] = lambda _: None
    outages: list[Outage] = field(default_factory=list)
    _places: dict[str, _Place] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _asked: dict[str, int] = field(default_factory=dict)
    _reference: list[Any] = field(default_factory=list)

    def of_float(self, key: str) -> dict[str, Latency]:
        """The float model's own latencies; its ratio is 1 by definition.

        Raises:
            DeviceError: a device cannot be reached, or is refused.
        """
        found = {}
        for device in self.devices:
            held = self.journal.get(_KIND, _entry(key, device))
            if held is None:
                place = self._place(device)
                measured = compare(place.baseline, place.baseline, self.feeds[0], runs=self.runs, warmup=0)
                held = {**asdict(_latency(measured)), "ratio": 1.0, "low": 1.0, "high": 1.0}
                self.journal.append(_KIND, _entry(key, device), held)
            found[device] = Latency(**held)
        return found

    def measure(self, candidate: Candidate, model: Model, *, predict: bool = True) -> dict[str, Latency]:
        """The candidate's latency on every device: from the journal, predicted, or measured now.

        predict: False measures in any case, which is what the front is confirmed with.

        Raises:
            DeviceError: the first that failed; what the others measured is in the journal.
        """
        found: dict[str, Latency] = {}
        failure: DeviceError | None = None
        for device in self.devices:
            held = self.journal.get(_KIND, _entry(candidate.key, device))
            if held is not None:
                found[device] = Latency(**held)
            elif predict and (guess := self._predicted(device, candidate)) is not None:
                found[device] = guess
            else:
                try:
                    found[device] = self._measured(device, candidate, model)
                except DeviceError as error:
                    failure = failure or error
            if device in found:
                self.latency_model.learn(device, candidate.policy, found[device])
        if failure is not None:
            if not failure.lasting:
                self.outages.append(Outage(candidate.name, str(failure)))
            raise failure
        return found

    def close(self) -> None:
        for place in self._places.values():
            place.runner.close()
        self._places.clear()

    def _predicted(self, device: str, candidate: Candidate) -> Latency | None:
        self._asked[device] = self._asked.get(device, -1) + 1
        if self.every == 1 or self._asked[device] % self.every == 0:
            return None
        ratio = self.latency_model.predict(device, candidate.policy)
        if ratio is None:
            return None
        base = self._place(device).before
        return Latency(ratio * base, ratio * base, ratio * base, base, ratio, 0)

    def _measured(self, device: str, candidate: Candidate, model: Model) -> Latency:
        place = self._place(device)
        program = place.runner.prepare(model, self.batch)
        try:
            refuse_disagreement(place.runner, program, model, self.feeds)
            for note in program.notes:
                self._tell(note)
            measured = compare(
                program, place.baseline, self.feeds[0], runs=self.runs, warmup=_WARMUP, before=place.before
            )
        finally:
            program.close()
        if measured.warning:
            self._tell(f"{device}: {measured.warning}")
        latency = _latency(measured)
        self.journal.append(_KIND, _entry(candidate.key, device), asdict(latency))
        return latency

    def _place(self, device: str) -> _Place:
        """The open device; its float model is compared with the CPU before it is trusted."""
        if device not in self._places:
            runner = open_runner(device, self.threads)
            try:
                baseline = runner.prepare(self.model, self.batch)
                refuse_disagreement(runner, baseline, self.model, self.feeds, self._expected())
                baseline.time(self.feeds[0], _WARMUP)
                times = sorted(baseline.time(self.feeds[0], max(self.runs // 2, 3)))
            except BaseException:
                runner.close()
                raise
            for note in baseline.notes:
                self._tell(note)
            self._places[device] = _Place(runner, baseline, times[len(times) // 2])
        return self._places[device]

    def _expected(self) -> list[Any]:
        if not self._reference:
            self._reference = reference_outputs(self.model, self.feeds)
        return self._reference

    def _tell(self, text: str) -> None:
        # Figures in a warning change from candidate to candidate; its beginning does not.
        if text[:60] not in self._said:
            self._said.add(text[:60])
            self.told(text)


def check_devices(devices: Sequence[str]) -> None:
    """Raises DeviceError where the tool or provider of a device is not on this machine; connects to none."""
    for device in devices:
        open_runner(device).close()


def _entry(key: str, device: str) -> str:
    return f"{key}|{device}"


def _latency(measured: Comparison) -> Latency:
    low, high = measured.ours.quartiles
    return Latency(
        measured.ours.median,
        low,
        high,
        measured.theirs.median,
        measured.ratio,
        measured.runs,
        measured.low,
        measured.high,
    )


def merged(candidate: Candidate, found: Mapping[str, Latency]) -> Candidate:
    """The candidate with its latencies; `latency` is the first where ONNX Runtime's own was not asked for."""
    first = candidate.latency or next(iter(found.values()), None)
    return dataclasses.replace(candidate, latencies=dict(found), latency=first)
