"""Real TVM servers and trackers on loopback, each in a process group of its own, and peers that misbehave."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Peer", "Served", "free_port", "serve", "silent_peer", "track"]

_START_S = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Served:
    """A process that listens."""

    process: subprocess.Popen[bytes]
    port: int

    def kill(self) -> None:
        """End it and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@functools.cache
def _without_torch() -> dict[str, str]:
    """An environment in which TVM finds no torch: importing it takes most of a server's start."""
    folder = tempfile.TemporaryDirectory(prefix="onnxq-without-torch-")
    atexit.register(folder.cleanup)
    (Path(folder.name) / "torch.py").write_text("raise ImportError('left out')\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder.name, os.environ.get("PYTHONPATH", "")])}


def _start(arguments: list[str], port: int) -> Served:
    # A server that was killed may have left a worker behind, which holds the port a little longer.
    _until(lambda: not _listening(port), "somebody else listens")
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=_without_torch(),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return Served(process, port)


def _listening(port: int) -> bool:
    """Whether somebody listens, without connecting: a TVM server takes a bare connection for a client."""
    with socket.socket() as probe:
        # Without it, connections of a server before this one that are not quite over would look like one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + _START_S
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def _wait(served: Served) -> None:
    def listens() -> bool:
        assert served.process.poll() is None, "the process ended at its start"
        return _listening(served.port)

    _until(listens, "the process does not listen")


# In a process of its own: TVM must not be loaded into the one that runs the tests.
_REGISTERED = """
import sys, time
from tvm import rpc
tracker, wanted = rpc.connect_tracker("127.0.0.1", int(sys.argv[1])), "server:" + sys.argv[2]
end = time.time() + 60
while wanted not in {entry["key"] for entry in tracker.summary()["server_info"]}:
    assert time.time() < end, "the server does not register"
    time.sleep(0.05)
"""


def _wait_for_tracker(tracker: int, key: str) -> None:
    """A server listens before it tells its tracker: without this, a client may ask for it too early."""
    command = [sys.executable, "-c", _REGISTERED, str(tracker), key]
    subprocess.run(command, check=True, env=_without_torch())


@contextlib.contextmanager
def serve(port: int = 0, tracker: int = 0, key: str = "") -> Iterator[Served]:
    """An RPC server, alone or registered with a tracker under `key`."""
    port = port or free_port()
    where = ["--tracker", f"127.0.0.1:{tracker}", "--key", key] if tracker else []
    served = _start(
        [
            "tvm.exec.rpc_server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--port-end",
            str(port + 1),
            *where,
        ],
        port,
    )
    try:
        _wait(served)
        if tracker:
            _wait_for_tracker(tracker, key)
        yield served
    finally:
        served.kill()


@contextlib.contextmanager
def track(port: int = 0) -> Iterator[Served]:
    """A tracker."""
    port = port or free_port()
    served = _start(
        ["tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)],
        port,
    )
    try:
        _wait(served)
        yield served
    finally:
        served.kill()


@dataclass
class Peer:
    """What accepts connections and never answers."""

    port: int
    accepted: list[Any]


@contextlib.contextmanager
def silent_peer(port: int = 0) -> Iterator[Peer]:
    listener = socket.create_server(("127.0.0.1", port))
    peer = Peer(int(listener.getsockname()[1]), [])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.accepted.append(listener.accept()[0])

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)
        for connection in peer.accepted:
            connection.close()
