"""The two files of a model over 2 GB take their names so that no kill leaves one beside the other's like."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

import onnxq.proof
import passes.graph.model
from passes.core.errors import OutputError
from passes.graph.external_data import tensor_array
from passes.graph.model import Model, load, save

Save = Callable[[Model, Path], object]
TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,200] x) => (float[N,200] y) { y = MatMul(x, w) }'


class _Killed(BaseException):
    """Stands for SIGKILL."""


def _model(value: float) -> Model:
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.append(numpy_helper.from_array(np.full((200, 200), value, np.float32), "w"))
    return Model(proto)


def _fails(monkeypatch: pytest.MonkeyPatch, folder: Path, fatal: int, error: BaseException) -> None:
    """Let the renaming of that number, of those to a name in the folder itself, raise an error instead."""
    real, calls = os.replace, 0

    def rename(source: Any, target: Any) -> None:
        nonlocal calls
        calls += Path(target).parent == folder
        if calls == fatal:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)


@pytest.mark.parametrize("write", [save, onnxq.proof.save])
@pytest.mark.parametrize("fatal", [1, 2])
def test_a_kill_never_leaves_an_old_model_beside_new_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Save, fatal: int
) -> None:
    monkeypatch.setattr(passes.graph.model, "LARGE", 2**15)
    path = tmp_path / "model.onnx"
    write(_model(1.0), path)
    with monkeypatch.context() as patch:
        _fails(patch, tmp_path, fatal, _Killed())
        with pytest.raises(_Killed):
            write(_model(2.0), path)
    assert not path.exists()
    write(_model(3.0), path)
    np.testing.assert_array_equal(tensor_array(load(path).proto.graph.initializer[0]), 3.0)


@pytest.mark.parametrize("write", [save, onnxq.proof.save])
@pytest.mark.parametrize("fatal", [1, 2])
def test_a_renaming_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Save, fatal: int
) -> None:
    monkeypatch.setattr(passes.graph.model, "LARGE", 2**15)
    _fails(monkeypatch, tmp_path, fatal, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OutputError, match=r"model\.onnx"):
        write(_model(1.0), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
