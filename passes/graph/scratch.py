"""Temporary files and folders that never outlive their process for long.

Every temporary folder carries the number of the process that made it, `onnxq-PID-RANDOM` (hidden, with a
dot in front, beside an output), and is locked for as long as that process lives. It is removed when its
block ends, when its owner is garbage collected, and when the interpreter ends, an end by SIGTERM or SIGHUP
included (onnxq/signals.py). What a process leaves that was killed with SIGKILL is removed by the next
process that makes a temporary folder in the same place.

A folder is taken for a left-over only if nobody holds its lock and its process is gone, or if it is old. The
lock alone would do on Linux; the number protects the instant between making a folder and locking it, and the
age decides where locks do not work (Windows, some network disks).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "TEMPORARY",
    "Scratch",
    "lock_descriptor",
    "remove_leftovers",
    "remove_live",
    "scratch_folder",
    "temporary_name",
]

TEMPORARY = ".tmp"
_FOLDER = re.compile(r"\.?onnxq-(\d+)-[0-9a-f]{12}")
_FILE = re.compile(r"\..+\.(\d+)-[0-9a-f]{12}" + re.escape(TEMPORARY))
# After this nobody is at work on it any more, whatever its number says: numbers are given out again.
_REUSED_S = 3600.0
_UNLOCKABLE_S = 24 * 3600.0
_LIVE: dict[Path, int] = {}
_SEEN: set[Path] = set()


class Scratch:
    """A temporary folder that is removed when this object is garbage collected or the interpreter ends.

    Args:
        parent: where to make it (hidden there); default the system's folder for temporary files.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        place = Path(tempfile.gettempdir() if parent is None else parent)
        if place not in _SEEN:
            _SEEN.add(place)
            remove_leftovers(place)
        self.path = _make(place, "onnxq-" if parent is None else ".onnxq-")
        lock = None
        with contextlib.suppress(OSError):
            lock = _locked(self.path)
        _LIVE[self.path] = os.getpid()
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder now; closing twice is fine."""
        self._end()


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A temporary folder for the length of a block, as `Scratch` makes it.

    Raises:
        OSError: it cannot be made (no such parent, no permission, disk full).
    """
    scratch = Scratch(parent)
    try:
        yield scratch.path
    finally:
        scratch.close()


def temporary_name(target: Path) -> Path:
    """A hidden name beside `target` for the file that will be renamed to it."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(6)}{TEMPORARY}")


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed left in `folder`: temporary folders, and files not yet renamed.

    Never raises: what cannot be listed or removed (another user's) stays.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            is_folder = _FOLDER.fullmatch(entry.name)
            found = is_folder or _FILE.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False) == bool(is_folder) and not entry.is_symlink():
                    _remove_stale(Path(entry.path), int(found[1]))


def remove_live() -> None:
    """Remove every temporary folder of this process; for an end that runs no clean-up of its own."""
    for path, owner in list(_LIVE.items()):
        if owner == os.getpid():
            shutil.rmtree(path, ignore_errors=True)


def lock_descriptor(descriptor: int) -> None:
    """Lock an open file or folder until it is closed.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(path: Path) -> int:
    """The descriptor that holds the lock of `path`; raises as `lock_descriptor` does."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        lock_descriptor(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make(place: Path, prefix: str) -> Path:
    while True:
        path = place / f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
            return path


def _remove(path: Path, lock: int | None) -> None:
    if _LIVE.get(path) != os.getpid():
        return  # a forked process: the folder is its parent's
    del _LIVE[path]
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _remove_stale(path: Path, owner: int) -> None:
    try:
        lock = _locked(path)
    except BlockingIOError:
        return
    except OSError:
        lock = None
    age = time.time() - path.stat().st_mtime
    if (lock is not None and not _alive(owner)) or age > (_UNLOCKABLE_S if lock is None else _REUSED_S):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    if lock is not None:
        os.close(lock)


def _alive(number: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True
