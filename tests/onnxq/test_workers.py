"""tune with evaluations in other processes: the same front, and workers that die."""

from __future__ import annotations

import os
import pickle
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from onnxq.files import sha256_file
from onnxq.tuning import Event, TuneConfig, TuneResult, tune, workers
from onnxq.tuning.workers import MemoryJournal, Shipment, Workers
from passes.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def config(tiny: Path, tiny_data: Path, **more: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "model": str(tiny),
        "data": str(tiny_data),
        "calibration_samples": 10,
        "ranking_samples": 4,
        "objectives": "metric,bytes",
        "modes": ("static",),
        "weights": ("int4:channel", "int8:channel"),
        "threads": 1,
        **more,
    }
    return TuneConfig(**settings)


def front(result: TuneResult) -> list[dict[str, Any]]:
    return [member.to_json() for member in result.front]


def files(run: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (run / "front").glob("*.onnx")}


@pytest.fixture(scope="module")
def alone(tiny: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuneResult]:
    run = tmp_path_factory.mktemp("alone")
    return run, tune(config(tiny, tiny_data), run)


def same(run: Path, result: TuneResult, alone: tuple[Path, TuneResult]) -> None:
    assert result.finished
    assert front(result) == front(alone[1])
    assert files(run) == files(alone[0])
    # Not the front alone: nothing is raced here, so every candidate is the same.
    assert [c.to_json() for c in result.candidates] == [c.to_json() for c in alone[1].candidates]


def test_two_workers_give_the_same_front_though_one_dies(
    tiny: Path,
    tiny_data: Path,
    tmp_path: Path,
    alone: tuple[Path, TuneResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    submit = Workers._submit

    def watched(self: Workers, task: Any) -> Any:
        future = submit(self, task)
        assert self._crew is not None
        if self._crew.executor not in started:
            started.append(self._crew.executor)
        return future

    killed: list[int] = []

    def kill_one(event: Event) -> None:
        if event.phase == "measure" and event.done == 2 and not killed:
            killed.append(next(iter(started[0]._processes)))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Workers, "_submit", watched)
    result = tune(config(tiny, tiny_data, workers=2), tmp_path, on_event=kill_one)
    same(tmp_path, result, alone)
    assert killed
    assert len(started) == 2  # new processes took over
    again = tune(config(tiny, tiny_data), tmp_path)
    assert again.resumed == len(again.candidates)


@pytest.mark.skipif(find_spec("distributed") is None, reason="Dask is not installed")
@pytest.mark.filterwarnings("ignore")
def test_dask_cluster_gives_the_same_front_though_a_worker_dies(
    tiny: Path, tiny_data: Path, tmp_path: Path, alone: tuple[Path, TuneResult]
) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        pids = [worker.process.pid for worker in cluster.workers.values()]
        killed: list[int] = []

        def kill_one(event: Event) -> None:
            if event.phase == "measure" and event.done == 2 and not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        settings = config(tiny, tiny_data, scheduler=cluster.scheduler_address)
        result = tune(settings, tmp_path, on_event=kill_one)
    same(tmp_path, result, alone)
    assert killed


def test_a_scheduler_that_is_not_there_is_one_sentence(tiny: Path, tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match=r"`scheduler` nonsense://here: cannot be reached"):
        tune(config(tiny, tiny_data, scheduler="nonsense://here"), tmp_path)


def test_workers_that_always_die_are_told(tiny: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Each process ends itself as soon as it has its first task."""
    from tests.dying_worker import die

    start = workers.open_workers(1, "", Shipment(die, ()), tmp_path)
    with pytest.raises(UserError, match="worker processes died 5 times"):
        start.result(_proposal(), lambda _: None or _task())
    start.close()


def _proposal() -> Any:
    from onnxq.search.ranking import Proposal
    from passes.policy import Policy

    return Proposal("static-001", "ranking", 0, "static", Policy(), ())


def _task() -> Any:
    from onnxq.search.candidate import Candidate

    blank = Candidate("k", "static-001", 0, "ranking", 0, "static", {})
    return workers.Task(blank, _proposal(), (), {}, {})


def test_a_shipment_survives_the_journey() -> None:
    journal = MemoryJournal()
    journal.update("hits", {"a": "1"})
    token, data = Shipment(MemoryJournal, ()).pickled()
    assert len(token) == 64
    assert isinstance(pickle.loads(data).make(), MemoryJournal)
    assert journal.get("hits", "a") == "1"
    assert journal.records("hits") == {"a": "1"}
