"""The journal: what was appended is there, whatever happened in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxq.search import journal as journal_module
from onnxq.search.journal import JOURNAL_NAME, Journal, read_journal
from passes.core.errors import OutputError, ResumeError

PRINT = {"model": "a" * 64, "data": "b" * 64, "seed": "0", "tool_version": "0.1"}
_RECORDS = [("note", f"k{i}", {"top1": i / 7, "name": f"static-{i:03} ä"}) for i in range(5)]


def _fill(folder: Path) -> None:
    with Journal(folder, PRINT) as journal:
        for record in _RECORDS:
            journal.append(*record)


def test_round_trip(tmp_path: Path) -> None:
    _fill(tmp_path / "run")
    with Journal(tmp_path / "run", PRINT) as journal:
        assert journal.resumed
        assert journal.fingerprint == PRINT
        assert journal.get("note", "k3") == _RECORDS[3][2]
        assert journal.get("note", "k9") is None
        assert journal.get("errors", "k3") is None
        assert list(journal.records("note")) == [key for _, key, _ in _RECORDS]
        journal.append("note", "k1", {"top1": 1.0})
        journal.append("errors", "k1", ("a", "b"))
        assert list(journal.records("note"))[1] == "k1"
        assert journal.get("note", "k1") == {"top1": 1.0}
        assert journal.get("errors", "k1") == ["a", "b"]


def test_every_torn_end_is_cut_off(tmp_path: Path) -> None:
    """Cut the file anywhere after the header: no error, no wrong record, and writable again."""
    _fill(tmp_path)
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for cut in range(header, len(whole), 7):
        path.write_bytes(whole[:cut])
        expected = whole[:cut].count(b"\n") - 1
        seen = read_journal(tmp_path)
        assert seen is not None
        assert len(seen.kinds.get("note", {})) == expected
        with Journal(tmp_path, PRINT) as journal:
            assert len(journal.records("note")) == expected
            for record in _RECORDS[expected:]:
                journal.append(*record)
        assert path.read_bytes() == whole


def test_torn_last_line_with_its_newline(tmp_path: Path) -> None:
    _fill(tmp_path)
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b"\x00\x00\x00\n")
    with Journal(tmp_path, PRINT) as journal:
        assert len(journal.records("note")) == 5
    assert path.read_bytes() == whole


@pytest.mark.parametrize("broken", [b"not json\n", b"[1, 2]\n", b'{"kind": "x"}\n'])
def test_broken_middle_names_the_line(tmp_path: Path, broken: bytes) -> None:
    _fill(tmp_path)
    path = tmp_path / JOURNAL_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = broken
    path.write_bytes(b"".join(lines))
    with pytest.raises(ResumeError, match="line 3 is not a journal record"):
        Journal(tmp_path, PRINT)


def test_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text("my diary\n")
    with pytest.raises(ResumeError, match="line 1 is not the header"):
        Journal(tmp_path, PRINT)
    assert (tmp_path / JOURNAL_NAME).read_text() == "my diary\n"


def test_other_schema(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text('{"schema": 99, "fingerprint": {}}\n')
    with pytest.raises(ResumeError, match="schema 99"):
        Journal(tmp_path, PRINT)


def test_mismatch_names_every_field(tmp_path: Path) -> None:
    _fill(tmp_path)
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    other = {**PRINT, "model": "c" * 64, "seed": "1", "limit": "400"}
    with pytest.raises(ResumeError) as caught:
        Journal(tmp_path, other)
    message = str(caught.value)
    assert "model was aaaaaaaaaaaaa... and is now ccccccccccccc..." in message
    assert "seed was 0 and is now 1" in message
    assert "limit was nothing and is now 400" in message
    assert "data" not in message.replace(str(tmp_path), "")
    assert "another folder, or `fresh`" in message
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_fresh_keeps_the_old_one_aside(tmp_path: Path) -> None:
    _fill(tmp_path)
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    with Journal(tmp_path, {"model": "other"}, fresh=True) as journal:
        assert not journal.resumed
        assert journal.records("note") == {}
    assert (tmp_path / "journal.previous.jsonl").read_bytes() == before


def test_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from onnxq.search.journal import Journal; from passes.core.errors import ResumeError\n"
        f"try: Journal({str(tmp_path)!r}, {PRINT!r})\n"
        "except ResumeError as error: sys.exit(str(error))\n"
    )
    root = Path(journal_module.__file__).parents[2]
    with Journal(tmp_path, PRINT):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "another process is working" in done.stderr
        with pytest.raises(ResumeError, match="another process"):
            Journal(tmp_path, PRINT)
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_refused_opening_lets_go_of_the_lock(tmp_path: Path) -> None:
    _fill(tmp_path)
    with pytest.raises(ResumeError):
        Journal(tmp_path, {})
    Journal(tmp_path, PRINT).close()


def test_disk_full_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, PRINT) as journal:
        journal.append(*_RECORDS[0])
        before = journal.path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            journal.append(*_RECORDS[1])
        monkeypatch.undo()
        assert journal.path.read_bytes() == before
        assert journal.get("note", "k1") is None
        journal.append(*_RECORDS[1])
    with Journal(tmp_path, PRINT) as journal:
        assert list(journal.records("note")) == ["k0", "k1"]


class _Killed(BaseException):
    """Stands for SIGKILL: nothing below may handle it and go on."""


def test_killed_between_every_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before each fsync and each rename in turn, resume, and end with the same bytes."""
    _fill(tmp_path / "whole")
    whole = (tmp_path / "whole" / JOURNAL_NAME).read_bytes()
    real: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "replace": os.replace}
    for fatal in range(1, 30):
        folder = tmp_path / str(fatal)
        calls = 0

        def counted(name: str) -> Any:
            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fatal:  # noqa: B023 (used within this turn of the loop)
                    raise _Killed
                return real[name](*arguments)

            return call

        for name in real:
            monkeypatch.setattr(os, name, counted(name))
        killed = False
        try:
            _fill(folder)
        except _Killed:
            killed = True
        monkeypatch.undo()
        with Journal(folder, PRINT) as journal:
            done = journal.records("note")
            for kind, key, payload in _RECORDS:
                if key in done:
                    assert done[key] == payload
                else:
                    journal.append(kind, key, payload)
        assert (folder / JOURNAL_NAME).read_bytes() == whole
        if not killed:
            assert fatal > len(_RECORDS)
            return
    pytest.fail("the journal never finished")


def test_not_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with Journal(tmp_path, PRINT) as journal:
        before = journal.path.read_bytes()
        with pytest.raises(ValueError, match="JSON"):
            journal.append("note", "k", float("nan"))
        assert journal.path.read_bytes() == before
    with pytest.raises(OutputError, match="closed"):
        journal.append("note", "k", 1)


def test_no_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        Journal(tmp_path / "file" / "run", PRINT)
