"""What the tests of the command line share: a tiny network, data for it, and a runner."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper, parser

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N,3,8,8] x) => (float[N,4] y) {
  [first] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
  [bn] b = BatchNormalization(a, scale, shift, mean, var)
  [relu] c = Relu(b)
  [dw] d = Conv<group=16,pads=[1,1,1,1]>(c, w2)
  [relu2] e = Relu(d)
  [wide] f = Conv(e, w3, b3)
  [relu3] g = Relu(f)
  [gap] h = GlobalAveragePool(g)
  [flat] i = Flatten(h)
  [fc] y = Gemm<transB=1>(i, w4, b4)
}
"""
SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "scale": (16,),
    "shift": (16,),
    "mean": (16,),
    "var": (16,),
    "w2": (16, 1, 3, 3),
    "w3": (256, 16, 3, 3),
    "b3": (256,),
    "w4": (4, 256),
    "b4": (4,),
}
Invoke = Callable[..., Result]


def make_tiny(path: Path, seed: int = 0) -> Path:
    """Conv-BN-ReLU, depthwise, wide Conv, Gemm; 4 classes; 40 thousand weights."""
    rng = np.random.default_rng(seed)
    model = parser.parse_model(GRAPH)
    for name, shape in SHAPES.items():
        values: Any = rng.standard_normal(shape)
        values = (
            np.abs(values) + 0.5 if name in ("scale", "var") else values / np.sqrt(np.prod(shape[1:]) or 1)
        )
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def make_data(model: Path, path: Path, samples: int = 40) -> Path:
    """Random inputs, labelled by what the float model says."""
    import onnxruntime as ort

    x = np.random.default_rng(1).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    logits: Any = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.savez(path, x=x, y=logits.argmax(axis=1))
    return path


def _invoke(*args: object) -> Result:
    from onnxq.cli import cli

    # Before click 8.2 stderr was mixed into stdout unless this was said; since then it cannot be said.
    options: dict[str, Any] = (
        {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    )
    return CliRunner(**options).invoke(cli, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Run `onnxq ARGS` in this process."""
    return _invoke


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny float model; not to be changed."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="session")
def tiny_data(tiny: Path) -> Path:
    return make_data(tiny, tiny.with_name("data.npz"))


@pytest.fixture
def work(tiny: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: empty but for links to the model and the data."""
    os.link(tiny, tmp_path / "tiny.onnx")
    os.link(tiny_data, tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path
