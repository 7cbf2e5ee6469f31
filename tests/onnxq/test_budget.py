"""tune --budget: the file keeps it, and makes use of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.tuning import TuneConfig, tune
from passes.core.errors import UserError
from tests.nets import Net
from tests.tuning import by_bits, write_labelled

BUDGET = 32_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 49,000 weights in six layers, and samples that it labelled itself."""
    folder = tmp_path_factory.mktemp("budget")
    net = Net(seed=5)
    y = net.conv(net.input("x", ["N", 3, 6, 6]), 3, 32, name="stem", act="relu")
    y = net.conv(y, 32, 32, groups=32, name="depthwise", act="relu")
    y = net.conv(y, 32, 64, 1, name="expand", act="relu")
    y = net.conv(y, 64, 64, name="wide", act="relu")
    y = net.conv(y, 64, 128, 1, name="head", act="relu")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    proto = net.model(net.add("Gemm", y, net.weight(128, 6), name="fc")).proto
    x = np.random.default_rng(1).normal(0, 1, (48, 3, 6, 6)).astype(np.float32)
    write_labelled(folder, proto, x)
    return folder


def config(workspace: Path, strategy: str, **options: Any) -> TuneConfig:
    settings: dict[str, Any] = {
        "calibration_samples": 16,
        "weights": ("gse2", "tcq3", "uint4:channel", "gse6", "int8:channel"),
        "permutations": 1,
        "front": 6,
        "budget": BUDGET,
    }
    return by_bits(workspace, strategy, **settings | options)


@pytest.mark.parametrize(
    ("strategy", "rounding"),
    [
        ("threshold", "nearest"),
        ("ilp", "gptq"),
        ("shapley", "nearest"),
        ("nsga2", "nearest"),
        ("auto", "nearest"),
    ],
)
def test_the_file_keeps_the_budget(workspace: Path, tmp_path: Path, strategy: str, rounding: str) -> None:
    """A formula of weights alone is 2 to 8 KB short here: names, nodes, and functions of three formats."""
    settings = config(workspace, strategy, rounding=rounding)
    if rounding != "nearest":  # a trellis is searched for a long time
        settings = replace(settings, weights=("gse2", "uint4:channel", "gse6", "int8:channel"))
    result = tune(settings, tmp_path)
    assert result.finished
    assert result.candidates
    sizes = [candidate.bytes for candidate in result.candidates]
    assert max(sizes) <= BUDGET
    # One step more of the widest layer takes 4.6 KB; a threshold's sweep has few points at all.
    assert max(sizes) > (0.6 if strategy == "threshold" else 0.85) * BUDGET


def test_a_budget_below_every_file_is_refused_at_the_start(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`budget` 0.015MB: the smallest file of this search space takes"):
        tune(config(workspace, "ilp", budget=15_000.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
