"""`tune`: the loop that ties search, measurement, journal and report together.

Anytime: after each candidate the journal, the front's files and the report are on disk and valid.
Resumable: started again on the same folder it replays the journal and measures only what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.files import atomic_write_json
from onnxq.machine import cpu_flags, cpu_name, vnni_warning
from onnxq.metrics.base import Metric
from onnxq.report import LayerError, ReportWriter, environment, make_report
from onnxq.search import Candidate, Journal, front, pick_three
from onnxq.search.layer_errors import LayerErrors
from onnxq.search.ranking import Proposal
from onnxq.tuning.allocate import check_limits
from onnxq.tuning.config import TuneConfig
from onnxq.tuning.front_files import FrontFiles
from onnxq.tuning.latencies import check_devices
from onnxq.tuning.layer_ranking import crawling, in_order
from onnxq.tuning.measure import Measurer
from onnxq.tuning.outcome import Event, TuneResult, fingerprint_of, goal_met, sanity
from onnxq.tuning.pictures import draw_result
from onnxq.tuning.prepare import Prepared, RecordedRanges, calibrated
from onnxq.tuning.remote import Elsewhere
from onnxq.tuning.searches import Searches
from onnxq.tuning.strategies import Search, Strategy

__all__ = ["Event", "TuneResult", "tune"]


@dataclass
class _Run:
    """The state of one tune."""

    prepared: Prepared
    folder: Path
    journal: Journal
    measurer: Measurer
    metric: Metric
    emit: Callable[[Event], None]
    deadline: float | None
    writer: ReportWriter
    files: FrontFiles
    baseline: Candidate | None = None
    candidates: list[Candidate] = field(default_factory=list)
    errors: dict[str, list[LayerErrors]] = field(default_factory=dict)
    resumed: int = 0
    measured: int = 0
    slowest: float = 0.0
    elsewhere: Elsewhere | None = None

    @property
    def everything(self) -> list[Candidate]:
        return [*([self.baseline] if self.baseline else []), *self.candidates]

    def close(self) -> None:
        """End the workers, where there are any."""
        if self.elsewhere is not None:
            self.elsewhere.close()

    def warn(self, text: str) -> None:
        """Say at once, and in the report, what the reader must know about a device."""
        self.prepared = self.prepared.with_warning(text)
        self.emit(Event("warn", 0, 0, text))

    def _note(self, text: str) -> None:
        """Say in the report what was left out, and why."""
        self.prepared = dataclasses.replace(self.prepared, notes=(*self.prepared.notes, text))

    def members(self) -> list[Candidate]:
        return front(self.everything, self.prepared.config.search_options.objectives, self.metric)

    def report(self, finished: bool) -> str:
        """Front files first, then the report that names them, then what is no longer needed."""
        assert self.baseline is not None
        config = self.prepared.config
        members = [member for member in self.members() if member.mode != "float"]
        for member in members:
            self.files.save(member)
        first = next(iter(self.errors.values()), [])
        document = make_report(
            model=Path(config.model).name,
            candidates=self.everything,
            objectives=config.search_options.objectives,
            metric=self.metric,
            baseline=self.baseline,
            beside=[each for each in self.measurer.evaluator.metrics if each.name != self.metric.name],
            layers=[LayerError(e.layer, e.op, e.qdq, e.xmodel, e.score) for e in first],
            config=config.to_json(),
            environment=environment(cpu_flags(), cpu=cpu_name()),
            warnings=self.prepared.warnings,
            notes=(*filter(None, [self.strategy.caption]), *self.prepared.notes),
            finished=finished,
        )
        self.writer.write(document, final=finished)
        self.files.clean({member.name for member in members})
        return str(document["summary"])

    def best_text(self) -> str:
        usable = [c for c in self.candidates if c.usable and self.metric.name in c.metrics]
        if not usable:
            return ""
        picks = pick_three(self.members(), self.prepared.config.search_options.objectives, self.metric)
        if not picks:
            return ""
        best = picks["best-accuracy"].candidate
        shown = self.metric.format(best.metrics[self.metric.name])
        return f"best {best.name}: {shown} at {best.bytes / 1e6:.2f} MB"

    def out_of_time(self) -> bool:
        """Whether the next candidate, and then confirming the front, would go past the deadline.

        One is measured in any case, so that each start on a short time gets further.
        """
        if self.deadline is None or not self.measured:
            return False
        reserve = self.slowest * (1.2 + len(self.members()))
        return time.monotonic() + reserve > self.deadline

    @property
    def strategy(self) -> Strategy:
        """What proposes the policies."""
        return self.prepared.config.search_options.strategy

    def search(self) -> bool:
        """Measure every proposal; False when the time ran out first."""
        assert self.baseline is not None
        searches = Searches(
            self.folder,
            self.journal,
            self.measurer,
            self.writer,
            lambda: self.candidates,
            self.emit,
            self._note,
            self.deadline,
            self.baseline.bytes,
            self.errors,
        )
        return self._ahead(list(searches)) if self.strategy.ahead else self._in_turn(list(searches))

    def _ahead(self, searches: Sequence[Search]) -> bool:
        """All proposals of all modes first; then any order serves, and workers look ahead."""
        proposals = [proposal for search in searches for proposal in self.strategy.proposals(search)]
        self._send_away()
        total = len(proposals)
        self.emit(Event("measure", 0, total, "measuring"))
        given_up: set[str] = set()
        order = list(in_order(proposals, self.prepared.config.modes, hurried=self.deadline is not None))
        if self.elsewhere is not None:
            self.elsewhere.workers.plan(proposal for _, proposal in order)
        for done, (index, proposal) in enumerate(order, start=1):
            if proposal.mode in given_up:
                continue
            held = self._candidate(index, proposal)
            if held is None:
                return False
            self.emit(Event("measure", done, total, held.name, self.best_text()))
            note = crawling(held, self.prepared.config.modes)
            if note:
                self._note(note)
                given_up.add(held.mode)
        return True

    def _in_turn(self, searches: Sequence[Search]) -> bool:
        """One proposal after the other, each made from what was measured before; mode after mode."""
        self._send_away()
        index, name = 0, Path(self.prepared.config.model).name
        for search in searches:
            for proposal in self.strategy.proposals(search):
                index += 1
                held = self._candidate(index, proposal)
                if held is None:
                    return False
                self.emit(Event("measure", index, 0, f"{held.name} ({held.strategy})", self.best_text()))
            for drawing in search.drawings:
                self.writer.embed(*drawing(self.folder, name))
        return not any(search.cut_short for search in searches)

    def _send_away(self) -> None:
        """Evaluate in workers from now on, where the configuration names some."""
        if self.prepared.config.worker_options.wanted:
            self.elsewhere = Elsewhere(self.measurer, self.folder)
            self.measurer.elsewhere = self.elsewhere

    def _candidate(self, index: int, proposal: Proposal) -> Candidate | None:
        """The proposal measured, now or by an earlier process; None when no time is left for it."""
        held = self.measurer.finished(proposal)
        if held is not None:
            self.resumed += 1
            # By its name and place in this order: what was estimated then may be measured by now.
            held = dataclasses.replace(held, name=proposal.name, index=index, step=proposal.step)
            self.candidates.append(held)
            return held
        if self.out_of_time():
            return None
        began = time.monotonic()
        held = self.measurer.measure(proposal, index, self.everything)
        self.candidates.append(held)
        self.measured += 1
        self.report(finished=False)
        self.slowest = max(self.slowest, time.monotonic() - began)
        return held

    def reachable(self) -> bool:
        """Whether no device failed on a candidate; told with the device and the phase where one did."""
        outages = self.measurer.devices.outages
        if outages:
            names = ", ".join(dict.fromkeys(outage.candidate for outage in outages))
            self.warn(f"not measured: {names}; {outages[0].problem} (the same command takes them up again)")
        return not outages

    def confirm(self) -> None:
        """Measure the front again in full from its files, until it no longer changes."""
        done: set[str] = set()
        while True:
            pending = [m for m in self.members() if m.mode != "float" and m.key not in done]
            if not pending:
                return
            for position, member in enumerate(pending, start=1):
                self.files.save(member)
                confirmed = self.measurer.confirm(member, self.folder / "front" / f"{member.name}.onnx")
                self.candidates[self.candidates.index(member)] = confirmed
                done.add(member.key)
                self.emit(Event("confirm", position, len(pending), member.name, self.best_text()))


def tune(
    config: TuneConfig,
    folder: str | Path,
    *,
    fresh: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> TuneResult:
    """Run or resume a tune in `folder`.

    Raises UserError (and subclasses) for bad input, before anything is written; ResumeError when the
    folder belongs to another run.
    """
    start = time.monotonic()
    prepared, search = Prepared.of(config), config.search_options
    check_limits(prepared)
    check_devices(config.latency_options.devices)
    warning = vnni_warning()
    if warning and "static" in config.modes:
        prepared = prepared.with_warning(warning)
    metric = prepared.metric
    fingerprint = fingerprint_of(prepared)
    run_folder = Path(folder)
    with Journal(run_folder, fingerprint, fresh=fresh) as journal, contextlib.ExitStack() as stack:
        atomic_write_json(run_folder / "config.json", config.to_json())
        provider = calibrated(
            config.data_options.method, prepared.calibration, run_folder, config.machine_options.least_threads
        )
        ranges = RecordedRanges.of(journal, provider)
        measurer = Measurer(prepared, journal, ranges, fingerprint)
        stack.callback(measurer.devices.close)
        budget = config.machine_options.time_budget
        deadline = None if budget is None else start + budget
        writer = ReportWriter(run_folder, plot_every_s=30.0, first_plot_after_s=10.0)
        files = FrontFiles(run_folder / "front", measurer)
        run = _Run(prepared, run_folder, journal, measurer, metric, on_event, deadline, writer, files)
        measurer.devices.told = run.warn
        stack.callback(run.close)
        on_event(Event("prepare", 0, 1, "float model"))
        run.baseline = measurer.float_candidate()
        run.prepared = prepared = sanity(run.prepared, measurer.evaluator.metrics, run.baseline)
        whole = run.search()
        run.confirm()
        whole = run.reachable() and whole
        members = run.members()
        picks = pick_three(members, search.objectives, metric, reference=run.baseline)
        for mode in config.modes if search.strategy.needs_sensitivities else ():
            if (run_folder / f"space-{mode}.json").exists():
                given = picks, run.candidates, metric, run.baseline
                for name, picture in draw_result(run_folder, mode, *given):
                    writer.embed(name, picture)
        summary = run.report(finished=whole)
        return TuneResult(
            run_folder,
            run.candidates,
            members,
            picks,
            run.baseline,
            metric.name,
            whole,
            run.resumed,
            summary,
            goal_met(search.goal.metric_floor, metric, members),
        )
