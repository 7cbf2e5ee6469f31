"""The memory of a run: `journal.jsonl`, appended and fsynced once per finished piece of work.

Line 1 is the header `{"schema", "fingerprint"}`; every other line is a record `{"kind", "key", "payload"}`.
A line counts once its newline is on the disk. A kill in the middle of a write therefore leaves at most one
torn line at the end, which is cut off on the next opening; the work it would have recorded is done again.
A broken line anywhere else means that something else wrote into the file, and nothing is guessed about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from onnxq.documents import anything, record, table, text
from onnxq.files import (
    atomic_write,
    canonical_json,
    fsync_folder,
    make_folder,
    output_errors,
    remove_leftovers,
)
from onnxq.search.records import check_record
from passes.core.errors import OutputError, ResumeError
from passes.graph.jsontext import parse_json

__all__ = ["JOURNAL_NAME", "SCHEMA", "Journal", "JournalContents", "read_journal"]

JOURNAL_NAME = "journal.jsonl"
SCHEMA = 1
_LOCK_NAME = "journal.lock"
_PREVIOUS_NAME = "journal.previous.jsonl"
_FOLDERS = ("front", "cache")
_SHOWN = 16
_ABSENT = "nothing"
_HEADER = record({"schema": anything, "fingerprint": table(text)})
_RECORD = record({"kind": text, "key": text, "payload": anything})


@dataclass
class JournalContents:
    """What a journal says.

    Attributes:
        fingerprint: what the run belongs to.
        kinds: kind -> key -> payload, in the order of the first record of each key; the last payload wins.
        size: bytes up to the end of the last whole line.
    """

    fingerprint: dict[str, str]
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0


def read_journal(folder: str | PathLike[str]) -> JournalContents | None:
    """Read a run's journal without locking it (also while the run goes on); None where there is none.

    Raises:
        ResumeError: a line before the last is broken, or the schema is another one.
    """
    path = Path(folder) / JOURNAL_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResumeError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = data.split(b"\n")[:-1]
    if not lines:
        return None
    contents = JournalContents(_read_header(path, lines[0]), {}, len(lines[0]) + 1)
    for number, line in enumerate(lines[1:], start=2):
        try:
            entry = parse_json(line, f"{path}: line {number}", ResumeError)
            _RECORD(entry, "")
            check_record(entry["kind"], entry["payload"])
        except (ResumeError, ValueError) as error:
            # A torn line ends in no newline; only a disk that lost power half-way writes a broken last one.
            if number == len(lines) and isinstance(error, ResumeError):
                break
            reason = "" if isinstance(error, ResumeError) else f" ({error})"
            raise ResumeError(
                f"{path}: line {number} is not a journal record{reason}, so something else changed the file; "
                "restore it, or start over with `fresh`"
            ) from error
        contents.kinds.setdefault(entry["kind"], {})[entry["key"]] = entry["payload"]
        contents.size += len(line) + 1
    return contents


class Journal:
    """The journal of one run folder, open for this process alone.

    Use as a context manager, or call `close`. Opening an existing journal resumes it.

    Args:
        folder: the run folder; created where it is missing.
        fingerprint: everything that must not change between the start of a run and its resumption (hashes
            of model and data, settings, tool version), field -> text.
        fresh: start over; the old journal is kept beside the new one as `journal.previous.jsonl`.
        lock_timeout_s: how long to wait for another process to let go of the run.

    Raises:
        ResumeError: the journal belongs to something else, is damaged, or is in use.
        OutputError: the folder or the file cannot be written.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        fingerprint: Mapping[str, str],
        *,
        fresh: bool = False,
        lock_timeout_s: float = 0.0,
    ) -> None:
        self.folder = make_folder(folder)
        self.path = self.folder / JOURNAL_NAME
        _refuse_links(self.folder)
        self._guard = threading.Lock()
        self._lock = FileLock(self.folder / _LOCK_NAME, timeout=lock_timeout_s)
        self._acquire()
        try:
            self._contents = self._open(dict(fingerprint), fresh)
            self.resumed = bool(self._contents.kinds)
            with output_errors(self.path):
                self._file = self.path.open("ab", buffering=0)
        except BaseException:
            self._lock.release()
            raise

    @property
    def fingerprint(self) -> dict[str, str]:
        return dict(self._contents.fingerprint)

    def get(self, kind: str, key: str) -> Any | None:
        """The latest payload recorded under `kind` and `key`, or None."""
        return self._contents.kinds.get(kind, {}).get(key)

    def records(self, kind: str) -> dict[str, Any]:
        """key -> latest payload of one kind, in the order in which the keys were first recorded."""
        return dict(self._contents.kinds.get(kind, {}))

    def append(self, kind: str, key: str, payload: Any) -> None:
        """Record `payload` (plain JSON); on return it is on the disk. Safe to call from several threads.

        Raises:
            OutputError: it could not be written; the journal is as it was before the call.
            ValueError, TypeError: `payload` is not JSON (NaN included).
        """
        record = {"kind": kind, "key": key, "payload": payload}
        line = canonical_json(record).encode("utf-8") + b"\n"
        with self._guard:
            if self._file.closed:
                raise OutputError(f"{self.path}: the journal is closed")
            size = self._contents.size
            with output_errors(self.path):
                if os.fstat(self._file.fileno()).st_size != size:
                    self._file.truncate(size)
                try:
                    view = memoryview(line)
                    while view:
                        view = view[self._file.write(view) or 0 :]
                    os.fsync(self._file.fileno())
                except BaseException:
                    # Half a line must not stay: the next record would be glued to it and both be lost.
                    with contextlib.suppress(OSError):
                        self._file.truncate(size)
                    raise
            # Memory holds what the disk holds (tuples become lists), whether the run was resumed or not.
            self._contents.kinds.setdefault(kind, {})[key] = json.loads(line)["payload"]
            self._contents.size = size + len(line)

    def close(self) -> None:
        """Close the file and let other processes have the run; closing twice is fine."""
        with self._guard:
            self._file.close()
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _acquire(self) -> None:
        with output_errors(self.folder / _LOCK_NAME):
            try:
                self._lock.acquire()
            except Timeout:
                raise ResumeError(
                    f"{self.folder}: another process is working in this run folder; wait for it to end, "
                    "or use another folder"
                ) from None

    def _open(self, fingerprint: dict[str, str], fresh: bool) -> JournalContents:
        for place in (self.folder, *(self.folder / name for name in _FOLDERS)):
            remove_leftovers(place)
        if fresh and self.path.exists():
            with output_errors(self.path):
                self.path.replace(self.folder / _PREVIOUS_NAME)
                fsync_folder(self.folder)
        contents = read_journal(self.folder)
        if contents is None:
            header = canonical_json({"schema": SCHEMA, "fingerprint": fingerprint}) + "\n"
            atomic_write(self.path, header)
            return JournalContents(fingerprint, {}, len(header.encode("utf-8")))
        _check_fingerprint(self.folder, fingerprint, contents.fingerprint)
        with output_errors(self.path):
            if self.path.stat().st_size > contents.size:
                with self.path.open("r+b") as file:
                    file.truncate(contents.size)
                    os.fsync(file.fileno())
        return contents


def _refuse_links(folder: Path) -> None:
    """Raise ResumeError where the run would write through a link that the folder holds, to anywhere else."""
    for name in (JOURNAL_NAME, _LOCK_NAME, *_FOLDERS):
        if (folder / name).is_symlink():
            raise ResumeError(
                f"{folder / name}: is a link to another place; remove it, or use another folder"
            )


def _read_header(path: Path, line: bytes) -> dict[str, str]:
    try:
        header = parse_json(line, f"{path}: line 1", ResumeError)
        _HEADER(header, "")
        schema, fingerprint = header["schema"], header["fingerprint"]
    except (ResumeError, ValueError) as error:
        # Written by an atomic rename, so a broken one is never just torn.
        raise ResumeError(
            f"{path}: line 1 is not the header of an onnxq journal; use another folder, or `fresh`"
        ) from error
    if schema != SCHEMA:
        raise ResumeError(
            f"{path}: has journal schema {schema!r}, this version of onnxq writes {SCHEMA}; "
            "use another folder, or `fresh`"
        )
    return dict(fingerprint)


def _check_fingerprint(folder: Path, mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    differing = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    if not differing:
        return
    details = ", ".join(
        f"{_named(name)} was {_short(theirs.get(name))} and is now {_short(mine.get(name))}"
        for name in differing
    )
    raise ResumeError(
        f"{folder}: this run was started with something else: {details}; use another folder, or `fresh`"
    )


def _named(name: str) -> str:
    """A part of a fingerprint as messages name it: options are kept there as they are typed."""
    return f"`{name[2:].replace('-', '_')}`" if name.startswith("--") else name


def _short(value: str | None) -> str:
    if value is None:
        return _ABSENT
    return value if len(value) <= _SHOWN else value[: _SHOWN - 3] + "..."
