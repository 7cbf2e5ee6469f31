"""Sessions of models over 2 GB hold their weights once: read from their files, or decoded one by one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser

import passes.graph.model
from onnxq.proof.running import Runner
from onnxq.session import load_session
from onnxq.session_weights import without_weights
from passes.core.recipe import parse_recipe
from passes.graph.external_data import Reference, is_external
from passes.graph.model import Model, load, save

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,128] x) => (float[N,128] y) { y = MatMul(x, w) }'
X = {"x": np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)}


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model of 64 kB that counts as one over 2 GB, with its weights in a file."""
    monkeypatch.setattr(passes.graph.model, "LARGE", 2**15)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    proto = parser.parse_model(TEXT)
    values = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    save(Model(proto), tmp_path / "large.onnx")
    return load(tmp_path / "large.onnx")


def test_nothing_in_files_is_handed_over(large: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_external(large.proto.graph.initializer[0])
    monkeypatch.setattr(Reference, "read", lambda _: pytest.fail("the weights were read"))
    _, arrays = without_weights(large, ort.SessionOptions())
    assert not arrays
    outputs = Runner(large).run(X, 60.0)
    monkeypatch.undo()
    wanted = X["x"] @ numpy_helper.to_array(_filled(large))
    np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-4, atol=1e-4)


def _filled(model: Model) -> Any:
    tensor = model.proto.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data}
    begin, length = int(entries["offset"]), int(entries["length"])
    raw = Path(entries["location"]).read_bytes()[begin : begin + length]
    return helper.make_tensor("w", tensor.data_type, tensor.dims, raw, raw=True)


def test_outputs_keep_no_session_alive(large: Model) -> None:
    outputs = Runner(large).run(X, 60.0)
    assert outputs["y"].flags.owndata


def test_decoded_weights_lie_in_a_file_that_goes_with_the_session(large: Model, tmp_path: Path) -> None:
    packed = parse_recipe("quantize{weights=gse6:block32 activations=float}")(large).model
    before = set(tmp_path.glob("onnxq-*"))
    session = load_session(packed, threads=1)
    assert len(set(tmp_path.glob("onnxq-*")) - before) == 1
    found = session.run(None, X)[0]
    wanted = X["x"] @ numpy_helper.to_array(_filled(large))
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    del session
    gc.collect()
    assert set(tmp_path.glob("onnxq-*")) == before
