"""A strategy of the user's own: end to end in Python, on the command line, and from an installed package."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import onnxq as oq
from onnxq.report import load_report
from onnxq.search import read_journal
from onnxq.tuning.strategies import STRATEGIES, open_strategy, registry, strategy_text
from passes.core.errors import UserError

Invoke = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
TUNE = ("--calibration-samples", "10", "--objectives", "metric,bytes", "--mode", "weights", "--threads", "1")
WEIGHTS = "int4:channel,int8:channel"


@pytest.fixture
def own(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny network, its data, and the example of CONTRIBUTING.md as a module."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Strategy" in b)
    (work / "own_strategies.py").write_text(example, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "own_strategies", raising=False)
    return work


def config(work: Path, strategy: Any) -> oq.TuneConfig:
    return oq.TuneConfig(
        model=str(work / "tiny.onnx"),
        data=str(work / "data.npz"),
        strategy=strategy,
        weights=("int4:channel", "int8:channel"),
        modes=("weights",),
        calibration_samples=10,
        objectives="metric,bytes",
        threads=1,
    )


def schemes(run: Path) -> list[str]:
    """The weights of each candidate, which are the same in every layer."""
    found = []
    for entry in load_report(run)["candidates"]:
        kinds = {choice["weights"] for choice in entry["policy"].get("layers", {}).values()}
        found += sorted(kinds)
    return found


def test_on_the_command_line_with_an_option_and_resumed(invoke: Invoke, own: Path) -> None:
    line = ("tune", "tiny.onnx", "--data", "data.npz", *TUNE, "--weights", WEIGHTS, "-o", "run")
    spec = "own_strategies:Uniform{most_policies=2}"
    done = invoke(*line, "--strategy", spec)
    assert done.exit_code == 0, done.output
    assert schemes(own / "run") == ["int8:channel", "int4:channel"]
    journal = read_journal(own / "run")
    assert journal is not None
    assert set(journal.kinds) <= {"ranges", "candidate", "hits", "confirmed"}  # no sensitivities, no errors
    assert journal.fingerprint["--strategy"] == spec
    again = json.loads(invoke(*line, "--strategy", spec, "--json").stdout)
    assert again["resumed"] == 2
    other = invoke(*line, "--strategy", "own_strategies:Uniform")
    assert other.exit_code == 2
    assert "--strategy was own_strategie... and is now own_strategie...;" in other.stderr
    assert "use another folder, or --fresh" in other.stderr
    built = invoke("build", "run", "weights-000", "-o", "built.onnx")
    assert built.exit_code == 0, built.output


def test_as_an_object_and_from_a_package(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own))
    kind = importlib.import_module("own_strategies").Uniform
    assert strategy_text(kind(most_policies=2)) == "own_strategies:Uniform{most_policies=2}"
    result = oq.tune(config(own, kind(most_policies=2)), own / "object")
    assert [candidate.strategy for candidate in result.candidates] == ["everywhere", "everywhere"]
    entry = EntryPoint("everywhere", "own_strategies:Uniform", registry.GROUP)
    monkeypatch.setattr(registry, "registered", lambda _: {"everywhere": entry})
    found = oq.tune(config(own, "everywhere"), own / "package")
    assert len(found.candidates) == 1


def test_the_help_and_the_options_come_from_the_table(invoke: Invoke) -> None:
    text = " ".join(invoke("tune", "--help").stdout.split())
    for kind in STRATEGIES.values():
        assert f"{kind.name}: {kind.help}" in text
    assert "--permutations INTEGER Walks that the values are averaged over. (Read by shapley.)" in text


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("rankin", "did you mean ranking"),
        ("json:loads", "is not a frozen dataclass that derives from"),
        ("nowhere:Strategy", "cannot be imported"),
        ("threshold{tau}", "is written as NAME or NAME{option=value ...}"),
        ("threshold{tow=1}", "has no option 'tow'; it has tau"),
        ("threshold{tau=much}", "must be a number"),
        ("shapley{permutations=0}", "must be 1 or more"),
    ],
)
def test_wrong_strategies_are_told(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        open_strategy(spec)
    assert strategy_text(open_strategy("threshold{tau=0.5}")) == "threshold{tau=0.5}"


def test_a_strategy_that_a_run_folder_names_is_not_imported(own: Path) -> None:
    Path("trap.py").write_text("raise SystemExit('was run')\n", encoding="utf-8")
    stored = config(own, "trap:Strategy{tau=1}").to_json()
    assert stored["strategy"] == "trap:Strategy{tau=1}"
    read = oq.TuneConfig.from_json(stored)
    assert read.fingerprint()["--strategy"] == "trap:Strategy{tau=1}"
    assert read.scheme_options.modes == ("weights",)
    assert "trap" not in sys.modules
