"""Whatever goes wrong, the old file or the new one, never half of one and never a leftover."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxq import files
from onnxq.files import atomic_write, atomic_write_json, canonical_json, sha256_bytes, sha256_file
from passes.core.errors import OutputError
from passes.graph import scratch


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_bytes_and_text_and_creates_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "x.txt"
    atomic_write(target, "grüß\n")
    assert target.read_bytes() == "grüß\n".encode()
    atomic_write(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert _names(target.parent) == ["x.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    atomic_write(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_failure_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    target = tmp_path / "report.json"
    atomic_write(target, "old")

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError) as caught:
        atomic_write(target, "new" * 1000)
    monkeypatch.undo()
    assert str(target) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["report.json"]


def test_disk_full_while_writing(tmp_path: Path) -> None:
    """A real full disk, where the system offers one."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="No space left"), files.output_errors("x"):
        Path("/dev/full").write_bytes(b"x")


def test_interruption_removes_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x", "y")
    assert _names(tmp_path) == []


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        atomic_write(tmp_path / "file" / "x", "y")
    with pytest.raises(OutputError, match="file"):
        files.make_folder(tmp_path / "file")


def test_what_a_killed_process_leaves_is_removed_by_the_next_one(tmp_path: Path) -> None:
    """A process is killed with a folder and half a file open; what is the user's or another's stays."""
    pytest.importorskip("fcntl")
    code = (
        "import os, signal, sys; from pathlib import Path; from passes.graph.scratch import *\n"
        "place = Path(sys.argv[1]); held = Scratch(place); (held.path / 'big').write_bytes(b'x')\n"
        "temporary_name(place / 'report.json').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    kept = ["onnxq-data", ".onnxq-mine", ".report.json.tmp", "onnxq-1-2.zip", "onnxq-999999999-abcdef.txt"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "onnxq-999999999-abcdefabcdef").symlink_to(tmp_path.parent, target_is_directory=True)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = set(_names(tmp_path)) - set(kept)
    assert len(left) == 3, "the killed process must leave something, or the test shows nothing"
    living = files.Scratch(tmp_path)
    files.remove_leftovers(tmp_path)
    assert set(_names(tmp_path)) == {*kept, "onnxq-999999999-abcdefabcdef", living.path.name}
    living.close()
    assert not living.path.exists()


def test_a_living_process_keeps_its_folder_whatever_its_number_says(tmp_path: Path) -> None:
    """The lock decides where the owner's number means nothing here: in another container, say."""
    pytest.importorskip("fcntl")
    folder, file = tmp_path / ".onnxq-999999999-abcdefabcdef", tmp_path / ".x.999999999-abcdefabcdef.tmp"
    folder.mkdir()
    file.touch()
    descriptors = [os.open(path, os.O_RDONLY) for path in (folder, file)]
    for descriptor in descriptors:
        scratch.lock_descriptor(descriptor)
    files.remove_leftovers(tmp_path)
    assert _names(tmp_path) == [folder.name, file.name]
    for descriptor in descriptors:
        os.close(descriptor)
    files.remove_leftovers(tmp_path)
    assert _names(tmp_path) == []


def test_old_folders_go_where_a_number_was_given_out_again(tmp_path: Path) -> None:
    old, young = tmp_path / f"onnxq-{os.getpid()}-{'a' * 12}", tmp_path / f"onnxq-{os.getpid()}-{'b' * 12}"
    old.mkdir()
    young.mkdir()
    os.utime(old, (1, 1))
    files.remove_leftovers(tmp_path)
    assert _names(tmp_path) == [young.name]


def test_a_scratch_folder_ends_with_its_block(tmp_path: Path) -> None:
    def fail() -> None:
        with files.scratch_folder(tmp_path) as folder:
            (folder / "x").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _names(tmp_path) == []


def test_canonical_json_is_one_text_for_one_value(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "ä"]}) == '{"a":[1.5,null,"ä"],"b":1}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    atomic_write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_bytes() == b'{"a":1}\n'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
