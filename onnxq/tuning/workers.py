"""Evaluations in other processes: `--workers N` on this machine, `--scheduler tcp://...` on a Dask cluster.

What every worker needs (the prepared model, the data, the calibrated ranges) is pickled once and shipped
once per worker: as a file that a local process reads when it starts, or scattered over the cluster. A task
is one policy; it comes back as the candidate's score, size and hash, which are the same wherever they are
computed. Results are taken in the order of the proposals, so the journal reads as if one process had
written it. Latencies are measured by the main process, one candidate at a time.

A worker that dies takes nothing with it: the tasks that were out are sent again, to new processes or by
Dask to other
workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxq.files import Scratch, make_folder, output_errors, sha256_bytes
from onnxq.search.candidate import Candidate
from onnxq.search.ranking import Proposal
from onnxq.signals import end_with_pipe
from passes.core.errors import UserError

__all__ = ["Shipment", "Workers", "open_workers"]

# Deaths in a row, without one result between them, after which it is not chance.
_DEATHS = 5
_HELD: dict[str, Any] = {}
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Shipment:
    """What a worker needs once. make: a module's function that makes the worker's measurer of `parts`."""

    make: Callable[..., Any]
    parts: tuple[Any, ...]

    def pickled(self) -> tuple[str, bytes]:
        """Its hash and its bytes."""
        data = pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)
        return sha256_bytes(data), data


@dataclasses.dataclass(frozen=True)
class Task:
    """One policy to measure, and what is known: finished candidates, their hits, ranges of tensors."""

    candidate: Candidate
    proposal: Proposal
    rivals: tuple[Candidate, ...]
    hits: Mapping[str, str]
    ranges: Mapping[str, tuple[float, float]]


Result = tuple[Candidate, str | None, dict[str, tuple[float, float]]]
"""The measured candidate, its hits as text where it was measured to the end, and ranges that were missing."""


def _unpacked(token: str, data: bytes) -> Any:
    """This process's measurer, made when the first task comes."""
    if token not in _HELD:
        shipment: Shipment = pickle.loads(data)
        _HELD.clear()
        _HELD[token] = shipment.make(*shipment.parts)
    return _HELD[token]


def _local(token: str, path: str, task: Task) -> Result:
    data = b"" if token in _HELD else Path(path).read_bytes()
    result: Result = _unpacked(token, data).work(task)
    return result


def _on_cluster(token: str, data: bytes, task: Task) -> Result:
    # A Dask worker may have several threads, and an evaluator serves one at a time.
    with _LOCK:
        result: Result = _unpacked(token, data).work(task)
        return result


@dataclasses.dataclass(frozen=True)
class Crew:
    """Running workers: an executor, what to call there, and how to end it."""

    executor: Executor
    function: Callable[..., Result]
    arguments: tuple[Any, ...]
    stop: Callable[[], None]


class Workers:
    """Sends proposals ahead of their turn and hands results out in turn.

    Args:
        start: makes a crew; called again where its processes died.
        ahead: how many tasks are out at once.
        lost: what a future raises whose worker died.
        end: gives back what all crews share.
    """

    def __init__(
        self,
        start: Callable[[], Crew],
        ahead: int,
        lost: tuple[type[BaseException], ...] = (BrokenProcessPool,),
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._start, self._ahead, self._lost, self._end = start, ahead, lost, end
        self._crew: Crew | None = None
        self._plan: list[Proposal] = []
        self._out: dict[str, tuple[Task, Future[Result]]] = {}
        self._deaths = 0

    def plan(self, proposals: Iterable[Proposal]) -> None:
        """The proposals that will come, in their order; they may be sent before they are asked for."""
        self._plan = list(proposals)

    def result(self, proposal: Proposal, make: Callable[[Proposal], Task | None]) -> Result:
        """What came of a proposal. make: the task of a proposal, None where it needs none any more.

        Raises:
            UserError: what the evaluation raised, or workers die again and again.
        """
        while True:
            try:
                self._fill(proposal, make)
                found = self._out[proposal.name][1].result()
            except self._lost:
                self._replace()
                continue
            except BaseException:
                self._out.pop(proposal.name, None)
                raise
            del self._out[proposal.name]
            self._deaths = 0
            return found

    def close(self) -> None:
        """End the workers; closing twice is fine."""
        self._stop()
        self._end()

    def _stop(self) -> None:
        if self._crew is not None:
            self._crew.stop()
        self._crew = None

    def _fill(self, proposal: Proposal, make: Callable[[Proposal], Task | None]) -> None:
        """Send the proposal where it is not out, and those behind it."""
        names = [planned.name for planned in self._plan]
        start = names.index(proposal.name) if proposal.name in names else len(names)
        for each in [proposal, *self._plan[start + 1 :]]:
            if len(self._out) >= self._ahead and each is not proposal:
                return
            if each.name in self._out:
                continue
            task = make(each)
            if task is not None:
                self._out[each.name] = (task, self._submit(task))

    def _submit(self, task: Task) -> Future[Result]:
        if self._crew is None:
            self._crew = self._start()
        return self._crew.executor.submit(self._crew.function, *self._crew.arguments, task)

    def _replace(self) -> None:
        """New processes for those that died; what was out is sent again."""
        self._deaths += 1
        if self._deaths >= _DEATHS:
            raise UserError(
                f"worker processes died {self._deaths} times without one result between; they may run out of "
                "memory: try fewer `workers` or a smaller `cache_mb`"
            ) from None
        self._stop()
        tasks = [task for task, future in self._out.values() if not _finished(future)]
        with contextlib.suppress(*self._lost):
            for task in tasks:
                self._out[task.proposal.name] = (task, self._submit(task))


def _finished(future: Future[Result]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def open_workers(count: int, scheduler: str, shipment: Shipment, folder: Path) -> Workers:
    """Workers on this machine, or on the cluster of a Dask scheduler. folder: of the run.

    Raises:
        UserError: the scheduler cannot be reached, or Dask is not installed.
    """
    token, data = shipment.pickled()
    if scheduler:
        return _on_dask(scheduler, token, data)
    scratch = Scratch(make_folder(folder))
    path = scratch.path / "worker.pickle"
    with output_errors(path):
        path.write_bytes(data)
    context = multiprocessing.get_context("spawn")

    def start() -> Crew:
        # The workers end when the other end of their pipe is closed: here, or by the death of this process.
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(count, context, initializer=end_with_pipe, initargs=(theirs,))

        def stop() -> None:
            pool.shutdown(wait=False, cancel_futures=True)
            ours.close()
            theirs.close()

        return Crew(pool, _local, (token, str(path)), stop)

    return Workers(start, 2 * count, end=scratch.close)


def _on_dask(scheduler: str, token: str, data: bytes) -> Workers:
    client = _client(scheduler)
    from distributed.scheduler import KilledWorker

    def start() -> Crew:
        # Anew where every worker that held the data has died.
        held = client.scatter(data, broadcast=True, hash=False)
        executor = client.get_executor(pure=False, retries=_DEATHS)
        return Crew(executor, _on_cluster, (token, held), lambda: executor.shutdown(wait=False))

    threads = sum(client.nthreads().values())
    return Workers(start, 2 * max(threads, 1), (KilledWorker, CancelledError), client.close)


def _client(scheduler: str) -> Any:
    if find_spec("distributed") is None:
        raise UserError(f"`scheduler` {scheduler}: Dask is not installed; pip install 'onnxq[cluster]'")
    from distributed import Client

    try:
        client: Any = Client(scheduler, timeout=10, set_as_default=False)
        client.wait_for_workers(1, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"`scheduler` {scheduler}: cannot be reached or has no worker: {reason}") from None
    return client


class MemoryJournal:
    """A worker's journal: what the main process told it, and what it has found itself."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, Any]] = {}

    def get(self, kind: str, key: str) -> Any | None:
        return self.kinds.get(kind, {}).get(key)

    def records(self, kind: str) -> dict[str, Any]:
        return dict(self.kinds.get(kind, {}))

    def append(self, kind: str, key: str, payload: Any) -> None:
        self.kinds.setdefault(kind, {})[key] = payload

    def update(self, kind: str, payloads: Mapping[str, Any]) -> None:
        self.kinds.setdefault(kind, {}).update(payloads)


def as_tuple(rivals: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Rivals as they are sent: without their layer maps, which are long and not needed."""
    return tuple(dataclasses.replace(rival, policy={}, changed=()) for rival in rivals if rival.usable)
