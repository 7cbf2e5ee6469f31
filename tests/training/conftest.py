"""The tests of training need torch: they skip without it, or fail where ONNXQ_REQUIRE_TORCH says so
(.ci/run)."""

from __future__ import annotations

import importlib.util
import os

import pytest

HERE = importlib.util.find_spec("torch") is not None
if not HERE:
    if os.environ.get("ONNXQ_REQUIRE_TORCH"):
        raise RuntimeError("torch is not installed, and ONNXQ_REQUIRE_TORCH says that it must be")
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run beside one another; sums in one order, so that equal seeds give equal files."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
