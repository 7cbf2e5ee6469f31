"""A tune with workers, killed at several moments: nothing is lost, measured twice, broken or left running.

The long version, with its table, is benchmarks/kill_resume.py.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("kill_resume", ROOT / "benchmarks" / "kill_resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_killed_and_resumed(tmp_path: Path) -> None:
    held = script()
    model, data = held.make_inputs(tmp_path, layers=4, samples=40)
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]
    result = held.torture(model, data, tmp_path, kills=3, seed=0, workers=2, signals=signals)
    assert result.kills == 3
    assert not result.orphans
    assert not result.lost
    assert not result.left
    assert not result.broken
    assert not result.twice
    assert result.front_equal
    assert result.models_equal
