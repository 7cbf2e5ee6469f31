"""SIGTERM and SIGHUP end a command in order; workers never outlive their parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

_WAITING = """
import hashlib, sys, time
from onnxq import signals
from onnxq.files import scratch_folder
signals._GRACE_S = 0.1
signals.end_cleanly()
with scratch_folder(sys.argv[1]):
    print("ready", flush=True)
    {wait}
"""
_WORKERS = """
import sys
from pathlib import Path
from onnxq.signals import end_cleanly
from onnxq.tuning import workers
from tests.slow_worker import Slow
from tests.onnxq.test_signals import proposal, task
if __name__ == "__main__":
    end_cleanly()
    held = workers.open_workers(2, "", workers.Shipment(Slow, (sys.argv[1],)), Path(sys.argv[1]))
    held.plan([proposal("static-000"), proposal("static-001")])
    try:
        held.result(proposal("static-000"), lambda each: task(each))
    finally:
        held.close()
"""


def start(code: str, folder: Path) -> subprocess.Popen[bytes]:
    script = folder / "script.py"
    script.write_text(code)
    # In a session of its own, by which its descendants are found.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (place / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(int(place.name))
    return found


def gone(leader: int, limit_s: float = 20.0) -> bool:
    end = time.monotonic() + limit_s
    while session(leader):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**9)"])
def test_temporary_folders_go_also_in_the_middle_of_a_library(
    tmp_path: Path, number: signal.Signals, wait: str
) -> None:
    process = start(_WAITING.format(wait=wait), tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert [path for path in tmp_path.iterdir() if path.is_dir()]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """What nohup does."""
    code = (
        "import signal; from onnxq.signals import end_cleanly; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "end_cleanly(); signal.raise_signal(signal.SIGHUP); print('still here')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert shown.stdout == b"still here\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    process = start(_WORKERS, tmp_path)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("working-*"))) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    assert len(session(process.pid)) >= 3
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert gone(process.pid)
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob(".onnxq-*"))


def proposal(name: str) -> object:
    from onnxq.search.ranking import Proposal
    from passes.policy import Policy

    return Proposal(name, "ranking", 0, "static", Policy(), ())


def task(each: object) -> object:
    from onnxq.search.candidate import Candidate
    from onnxq.search.ranking import Proposal
    from onnxq.tuning import workers

    assert isinstance(each, Proposal)
    return workers.Task(Candidate("k", each.name, 0, "ranking", 0, "static", {}), each, (), {}, {})
