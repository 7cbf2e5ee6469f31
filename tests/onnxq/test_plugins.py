"""A strategy, a runner and a kind of data from an installed package, known by its entry points alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from onnxq.data import open_dataset, runs_code
from onnxq.runners import open_runner
from passes.core.errors import DataError, UserError

Invoke = Callable[..., Result]

MODULE = '''
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from onnxq.data import Kind, MemoryDataset, open_dataset
from onnxq.runners import OrtRunner, Tool, parse_device
from onnxq.search.ranking import Proposal
from onnxq.tuning.strategies import Search, Strategy
from passes.core.fields import Option
from passes.policy import Policy


@dataclass(frozen=True)
class Cheapest(Strategy):
    """The cheapest scheme everywhere."""

    name: ClassVar[str] = "cheapest"
    help: ClassVar[str] = "Every layer gets the cheapest scheme."

    def proposals(self, search: Search) -> Any:
        policy = Policy(dict.fromkeys(search.layers, search.ladder[0]))
        yield Proposal(f"{search.mode}-000", self.name, 0, search.mode, policy, ())


class Echo(Tool):
    """ONNX Runtime under another name."""

    name: ClassVar[str] = "echo"
    title: ClassVar[str] = "Echo"
    forms: ClassVar[tuple[str, ...]] = ("echo:KIND",)
    numbers: ClassVar[tuple[str, ...]] = ("threads",)
    packages: ClassVar[dict[str, str]] = {"echo-runtime": "echoes"}

    def open(self, device: Any, threads: int | None) -> Any:
        return OrtRunner(parse_device("ort:cpu"), 1)

    def local(self) -> Sequence[str]:
        return ["echo:here"]


def _noise(spec: str, inputs: Any, preprocess: Any) -> Any:
    return open_dataset(spec.partition(":")[2], inputs)


NOISE = Kind("copy:PATH", lambda spec: True, _noise)
NOTHING = "no kind at all"
'''
ENTRIES = """
[onnxq.strategies]
cheapest = own_package:Cheapest

[onnxq.runners]
echo = own_package:Echo
broken = own_package:Cheapest

[onnxq.sources]
copy = own_package:NOISE
nothing = own_package:NOTHING
"""


@pytest.fixture
def package(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny network and its data, and a package as pip would have installed it."""
    site = work / "site"
    info = site / "own_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_package.py").write_text(MODULE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRIES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "own_package", raising=False)
    return work


def test_all_three_in_one_tune(invoke: Invoke, package: Path) -> None:
    done = invoke(
        *("tune", "tiny.onnx", "--data", "copy:data.npz", "--calibration-samples", "10", "--mode", "weights"),
        *("--strategy", "cheapest", "--objectives", "metric,bytes,latency@echo:here", "--latency-runs", "2"),
        *("--threads", "1", "-o", "run", "--json"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["candidates"] == 1
    (member,) = [entry for entry in result["front"] if entry["mode"] != "float"]
    assert member["strategy"] == "cheapest"
    assert member["latencies"]["echo:here"]["runs"] >= 2
    assert runs_code("data.npz") is False


def test_help_and_doctor_tell_of_them(invoke: Invoke, package: Path) -> None:
    text = " ".join(invoke("tune", "--help").stdout.split())
    assert "copy:..." in text
    assert "Installed: cheapest." in text


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("echo:", "names no device"),
        ("echo://host:1?target=x", "Echo runs on this machine only; remote devices are tvm://"),
        ("echo:here?thread=1", "did you mean 'threads'"),
        ("echo:here?threads=x", "threads=x is not a number"),
        ("broken:x", "gives no class that derives from onnxq.runners.Tool"),
        ("ecko:here", "is not of the form ort:PROVIDER"),
    ],
)
def test_device_strings_of_a_package_are_checked(package: Path, device: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_runner(device)


def test_what_is_no_kind_of_data_is_told(invoke: Invoke, package: Path) -> None:
    done = invoke("eval", "tiny.onnx", "--data", "nothing:x")
    assert done.exit_code == 2
    assert "nothing:x: the package that registers nothing gives no onnxq.data.Kind" in done.stderr
    with pytest.raises(DataError, match=r"does not exist; give .* copy:\.\.\. or nothing:\.\.\."):
        open_dataset("absent.npz", [])
