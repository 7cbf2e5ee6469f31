"""`import onnxq as oq`: cheap, complete, typed, and as the README shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typing_extensions import assert_type

import onnxq as oq

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", oq.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(oq, name) is not None
    assert name in dir(oq)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        oq.nothing  # type: ignore[attr-defined] # noqa: B018


def test_the_import_is_lazy() -> None:
    code = "import sys, onnxq; assert not {'onnx', 'numpy', 'passes', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_types_and_a_whole_round(tiny: Path, tiny_data: Path, tmp_path: Path) -> None:
    model = oq.load(tiny)
    assert_type(model, oq.Model)
    recipe = (
        oq.Simplify() | oq.FoldBatchNorm() | oq.Smooth(site="output") | oq.Quantize(weights="int8:channel")
    )
    assert_type(recipe, oq.Sequential)
    data = oq.open_dataset(tiny_data, model)
    assert_type(data, oq.Dataset)
    result = recipe(model, oq.calibrate(data))
    assert_type(result, oq.PassResult)
    assert oq.save(result.model, tmp_path / "small.onnx") < tiny.stat().st_size / 2
    score = oq.evaluate(oq.load(tmp_path / "small.onnx"), data, model)
    assert_type(score, oq.Score)
    assert score.values["top1"] > 0.7
    policy = oq.Policy.uniform(oq.find_layers(model), oq.Scheme.parse("int8"))
    assert_type(policy, oq.Policy)
    oq.check_golden(oq.parse_recipe("simplify"), model, tmp_path / "g.txt", update=True)
    oq.check_golden(oq.parse_recipe("simplify"), model, tmp_path / "g.txt")
    config = oq.TuneConfig(
        str(tiny),
        str(tiny_data),
        modes=("weights",),
        objectives="metric,bytes",
        calibration_samples=4,
        ranking_samples=2,
    )
    assert_type(oq.tune(config, tmp_path / "run"), oq.TuneResult)


def test_the_example_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not (ROOT / "models" / "resnet20.onnx").is_file():
        pytest.skip("the model is not trained yet")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
