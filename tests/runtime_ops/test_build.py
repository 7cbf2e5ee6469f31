"""Building the library: what is missing is said in one sentence, and an installation goes on without it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from runtime_ops import build as building
from runtime_ops.build import LIBRARY_NAME, REASON_NAME, BuildError, build
from runtime_ops.library import library_status

posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for CMake is a shell script")


@pytest.fixture
def cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CMake that does what the test writes into it: $4 is the build folder when configuring, $2 later."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "cmake"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for name in ("ONNXQ_NO_NATIVE", "ONNXQ_REQUIRE_NATIVE", "ONNXQ_ORT_INCLUDE"):
        monkeypatch.delenv(name, raising=False)
    return script


def says(script: Path, body: str) -> None:
    script.write_text(f"#!/bin/sh\n{body}\n")


def test_no_cmake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="CMake is not installed"):
        build(tmp_path / "out")


def test_no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "_PACKAGE", tmp_path)
    with pytest.raises(BuildError, match="does not hold the C\\+\\+ sources"):
        build(tmp_path / "out")


@posix
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('echo "no headers here" > "$4/reason.txt"; exit 1', "^no headers here$"),
        ("echo No CMAKE_CXX_COMPILER could be found. >&2; exit 1", "there is no C\\+\\+ compiler"),
        ("echo noise; echo Error in line 3 >&2; exit 1", "CMake failed: Error in line 3"),
        ("exit 1", "CMake failed: no output"),
        ("exit 0", f"CMake made no {LIBRARY_NAME}"),
    ],
)
def test_what_cmake_says_becomes_one_sentence(cmake: Path, tmp_path: Path, body: str, text: str) -> None:
    says(cmake, body)
    with pytest.raises(BuildError, match=text):
        build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@posix
def test_the_library_takes_the_place_of_the_old_one(cmake: Path, tmp_path: Path) -> None:
    says(cmake, f'[ "$1" = --build ] && echo new > "$2/{LIBRARY_NAME}"; exit 0')
    out = tmp_path / "out"
    out.mkdir()
    (out / LIBRARY_NAME).write_text("old")
    (out / REASON_NAME).write_text("no compiler then")
    assert build(out) == out / LIBRARY_NAME
    assert (out / LIBRARY_NAME).read_text() == "new\n"
    assert [path.name for path in out.iterdir()] == [LIBRARY_NAME]  # and no reason, were there one


@posix
def test_an_installation_goes_on_without(
    cmake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(cmake, 'echo "no headers here" > "$4/reason.txt"; exit 1')
    assert building._attempt(tmp_path / "out") is False
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "no headers here" in line
    assert (tmp_path / "out" / REASON_NAME).read_text() == "no headers here\n"
    monkeypatch.setenv("ONNXQ_REQUIRE_NATIVE", "1")
    with pytest.raises(BuildError):
        building._attempt(tmp_path / "out")
    monkeypatch.setenv("ONNXQ_NO_NATIVE", "1")
    monkeypatch.delenv("ONNXQ_REQUIRE_NATIVE")
    assert building._attempt(tmp_path / "out") is False
    assert "ONNXQ_NO_NATIVE" in (tmp_path / "out" / REASON_NAME).read_text()


def test_the_reason_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXQ_LIBRARY", raising=False)
    monkeypatch.setattr(sys.modules["runtime_ops"], "__path__", [str(tmp_path)])
    assert library_status()["reason"].startswith("the C++ library was not built; ")
    (tmp_path / REASON_NAME).write_text("there is no C++ compiler\n")
    assert "not built (there is no C++ compiler); `python -m" in library_status()["reason"]
