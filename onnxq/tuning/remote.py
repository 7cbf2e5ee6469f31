"""The two ends of a task: the main process fills in what is known, the worker measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq.calibration import CalibratedRanges
from onnxq.files import sha256_bytes
from onnxq.metrics.hits import hits_to_text
from onnxq.search.candidate import Candidate
from onnxq.search.ranking import Proposal
from onnxq.tuning.measure import Measurer
from onnxq.tuning.prepare import Prepared, RecordedRanges
from onnxq.tuning.workers import MemoryJournal, Result, Shipment, Task, Workers, as_tuple, open_workers

__all__ = ["Elsewhere", "RemoteMeasurer"]


class RemoteMeasurer:
    """A worker's side: a Measurer that times nothing and writes nothing."""

    def __init__(
        self,
        prepared: Prepared,
        fingerprint: Mapping[str, str],
        ranges: Mapping[str, tuple[float, float]],
        races: bool,
    ) -> None:
        # Threads are for one candidate at a time; here several processes run side by side.
        config = dataclasses.replace(prepared.config, threads=1, objectives="metric,bytes")
        prepared = dataclasses.replace(prepared, config=config)
        self._journal = MemoryJournal()
        provider = CalibratedRanges(prepared.calibration, config.data_options.method, threads=1)
        self._ranges = RecordedRanges(dict(ranges), provider, None)
        self._measurer = Measurer(prepared, self._journal, self._ranges, fingerprint)
        if not races:
            self._measurer.race.stop()

    def work(self, task: Task) -> Result:
        self._ranges.recorded.update(task.ranges)
        self._journal.update("hits", task.hits)
        before = set(self._ranges.recorded)
        candidate = self._measurer.scored_here(task.candidate, task.proposal, task.rivals)
        new = {name: value for name, value in self._ranges.recorded.items() if name not in before}
        return candidate, self._journal.get("hits", candidate.key), new


class Elsewhere:
    """The main process's side: what `Measurer` asks instead of evaluating itself."""

    def __init__(self, measurer: Measurer, folder: Path) -> None:
        options = measurer.prepared.config.worker_options
        parts = (
            measurer.prepared,
            measurer.fingerprint,
            dict(measurer.ranges.recorded),
            bool(measurer.race.stages),
        )
        shipment = Shipment(RemoteMeasurer, parts)
        self._measurer = measurer
        self.workers: Workers = open_workers(options.count, options.scheduler, shipment, folder)

    def scored(self, proposal: Proposal, rivals: Sequence[Candidate]) -> Candidate:
        """The candidate's score; hits and new ranges are in the journal. Raises what the worker raised."""
        candidate, hits, ranges = self.workers.result(proposal, lambda each: self._task(each, rivals))
        if hits is not None:
            self._measurer.journal.append("hits", candidate.key, hits)
        if ranges:
            stored = {name: list(value) for name, value in ranges.items()}
            self._measurer.ranges.recorded.update(ranges)
            self._measurer.journal.append("ranges", sha256_bytes(repr(sorted(stored)).encode())[:16], stored)
        return candidate

    def _task(self, proposal: Proposal, rivals: Sequence[Candidate]) -> Task | None:
        """None where the journal knows the proposal already."""
        measurer = self._measurer
        candidate = measurer.blank(proposal)
        if any(measurer.journal.get(kind, candidate.key) is not None for kind in ("candidate", "scored")):
            return None
        known = as_tuple(rivals) if measurer.race.stages else ()
        hits = {rival.key: measurer.race.hits(rival) for rival in known}
        texts = {key: hits_to_text(value) for key, value in hits.items() if value is not None}
        return Task(candidate, proposal, known, texts, dict(measurer.ranges.recorded))

    def close(self) -> None:
        self.workers.close()
