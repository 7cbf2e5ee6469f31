"""Every JSON file of a user is read by one reader: whatever is wrong is one sentence, exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from onnxq.search.journal import JOURNAL_NAME, read_journal
from passes.core.errors import ResumeError

Invoke = Callable[..., Result]
BAD = {
    "deep": b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "bytes": b'{"a": "\xff\xfe"}',
    "twice": b'{"weights": "int8", "weights": "int4"}',
    "cut": b'{"a": [1, ',
}
FILES = {
    "policy": ("quantize", "tiny.onnx", "--policy", "bad.json", "--activations", "float"),
    "config": ("quantize", "tiny.onnx", "--config", "bad.json"),
    "preprocess": ("eval", "tiny.onnx", "--data", "data.npz", "--preprocess", "bad.json"),
    "costs": (
        "tune",
        "tiny.onnx",
        "--data",
        "data.npz",
        "--strategy",
        "ilp",
        "--costs",
        "bad.json",
        "-o",
        "r",
    ),
    "report": ("report", "run"),
    "space": ("allocate", "run"),
}


@pytest.mark.parametrize("content", BAD)
@pytest.mark.parametrize("file", FILES)
def test_bad_json(file: str, content: str, invoke: Invoke, work: Path) -> None:
    (work / "run").mkdir()
    for name in ("bad.json", "run/report.json", "run/space-weights.json"):
        (work / name).write_bytes(BAD[content])
    before = sorted(work.rglob("*"))
    result = invoke(
        *(word for word in FILES[file] if file != "policy" or word not in ("--activations", "float"))
    )
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert "\n" not in result.stderr.strip()
    name = {"report": "report.json", "space": "space-weights.json", "preprocess": "preprocess"}.get(
        file, "bad.json"
    )
    assert name in result.stderr
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("content", BAD)
def test_bad_journal(content: str, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(BAD[content] + b"\n")
    with pytest.raises(ResumeError, match="line 1 is not the header"):
        read_journal(tmp_path)
