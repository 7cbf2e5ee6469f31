"""Files: what is refused on loading, and that saving is all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import passes.graph.model
from passes.core.errors import InvalidModelError, ModelFileError, OutputError
from passes.graph.external_data import has_references
from passes.graph.model import Model, check, is_large, load, on_disk, save, serialize


def small(elements: int = 4) -> Model:
    weight = numpy_helper.from_array(np.arange(elements, dtype=np.float32), "w")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [elements]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight]
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "small")


def _missing(path: Path) -> None:
    pass


def _truncated(path: Path) -> None:
    path.write_bytes(serialize(small(1000))[:-50])


def _text(path: Path) -> None:
    path.write_text("this is no model, it is a letter\n" * 20)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _folder(path: Path) -> None:
    path.mkdir()


def _without_data(path: Path) -> None:
    onnx.save(small(1000).proto, path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    (path.parent / "weights.bin").unlink()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_missing, "no such file"),
        (_truncated, "truncated"),
        (_text, "not an ONNX model"),
        (_empty, "not an ONNX model"),
        (_folder, "folder"),
        (_without_data, "external data"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], word: str
) -> None:
    path = tmp_path / "m.onnx"
    spoil(path)
    with pytest.raises(ModelFileError, match=word) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.onnx"
    model = small()
    assert save(model, path) == path.stat().st_size
    loaded = load(path)
    assert loaded.proto == model.proto
    assert loaded.name == str(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["m.onnx"]


def test_external_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(1000).proto, path, save_as_external_data=True, location="w.bin", size_threshold=16)
    loaded = load(path)
    assert not has_references(loaded.proto)
    assert numpy_helper.to_array(loaded.proto.graph.initializer[0])[999] == 999


def test_large_models_get_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.graph.model, "LARGE", 2000)
    model, path = small(1000), tmp_path / "m.onnx"
    assert is_large(model.proto)
    written = save(model, path)
    assert written == path.stat().st_size + (tmp_path / "m.onnx.data").stat().st_size
    assert written > 4000
    assert not has_references(model.proto)
    check(model)
    with on_disk(model) as file:
        again = load(file)
    assert numpy_helper.to_array(load(path).proto.graph.initializer[0]).tolist() == list(range(1000))
    assert numpy_helper.to_array(again.proto.graph.initializer[0]).tolist() == list(range(1000))


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save(small(), path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"m\.onnx: cannot be written \(No space left"):
        save(small(100), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError):
        save(small(), tmp_path / "a" / "m.onnx")


def test_check_names_the_model() -> None:
    model = small()
    model.proto.graph.node[0].op_type = "Nonsense"
    with pytest.raises(InvalidModelError, match=r"small: the ONNX checker refuses it: .*Nonsense"):
        check(model)


def test_metadata_and_opset() -> None:
    model = small().with_metadata(policy="a").with_metadata(policy="b", tool="c")
    assert model.metadata == {"onnxq.policy": "b", "onnxq.tool": "c"}
    assert small().metadata == {}
    assert model.opset() == model.opset("ai.onnx") == 17
    assert model.opset("com.microsoft") == 0
    assert serialize(model) == serialize(model)
