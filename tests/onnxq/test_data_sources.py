"""Every source gives the same samples as what was written, and each way to get it wrong is one DataError."""

from __future__ import annotations

import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from onnxq.data import Dataset, InputSpec, check_labels, open_dataset, random_dataset, require_labels
from passes.core.errors import DataError

F32 = np.dtype(np.float32)
IMAGE = [InputSpec("input", F32, ("N", 3, 4, 6))]
VECTOR = [InputSpec("input", F32, (None, 5))]
PAIR = [InputSpec("ids", np.dtype(np.int64), ("N", "S")), InputSpec("mask", F32, ("N", "S"))]
SCALAR = [InputSpec("x", F32, (2, 3)), InputSpec("factor", F32, ())]

Array = NDArray[Any]


def _pixels(count: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3)).astype(np.uint8)


def _all(dataset: Dataset, name: str = "input", size: int = 4) -> Array:
    return np.concatenate([batch.inputs[name] for batch in dataset.batches(size)])


def _labels(dataset: Dataset) -> list[int]:
    return [int(x) for batch in dataset.batches(3) if batch.labels is not None for x in batch.labels]


def _write_images(folder: Path, names: list[str]) -> Array:
    pixels = _pixels(len(names))
    for name, image in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return pixels.transpose(0, 3, 1, 2).astype(np.float32)


def test_labels_file_decides_files_order_and_labels(tmp_path: Path) -> None:
    expected = _write_images(tmp_path, ["a b.png", "c.png", "unused.png"])
    (tmp_path / "labels.txt").write_text("c.png 7\n\na b.png 3\n")
    data = open_dataset(tmp_path, IMAGE, preprocess="none")
    assert data.labelled
    assert _labels(data) == [7, 3]
    np.testing.assert_array_equal(_all(data), expected[[1, 0]])


def test_class_folders(tmp_path: Path) -> None:
    expected = _write_images(tmp_path, ["bird/0.png", "bird/1.png", "cat/0.png"])
    (tmp_path / "ant").mkdir()
    data = open_dataset(tmp_path, IMAGE, preprocess="none")
    assert _labels(data) == [1, 1, 2]
    np.testing.assert_array_equal(_all(data), expected)


def test_plain_folder_is_unlabelled(tmp_path: Path) -> None:
    expected = _write_images(tmp_path, ["a.png", "b.png"])
    data = open_dataset(tmp_path, IMAGE, preprocess="none")
    assert not data.labelled
    np.testing.assert_array_equal(_all(data), expected)
    with pytest.raises(DataError, match="no labels"):
        require_labels(data)


def test_zip_of_class_folders(tmp_path: Path) -> None:
    expected = _write_images(tmp_path / "set", ["bird/0.png", "cat/0.png"])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    data = open_dataset(tmp_path / "set.zip", IMAGE, preprocess="none")
    assert _labels(data) == [0, 1]
    np.testing.assert_array_equal(_all(data), expected)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_npz_of_8_bit_images_is_preprocessed(tmp_path: Path, layout: str) -> None:
    pixels = _pixels()
    x = pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(6))
    data = open_dataset(tmp_path / "d.npz", IMAGE, preprocess="none")
    assert _labels(data) == list(range(6))
    np.testing.assert_array_equal(_all(data), pixels.transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="`preprocess`"):
        open_dataset(tmp_path / "d.npz", IMAGE)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, order: Any) -> None:
    x = np.random.default_rng(1).standard_normal((9, 5))
    np.save(tmp_path / "d.npy", np.asarray(x, order=order))
    data = open_dataset(tmp_path / "d.npy", VECTOR)
    assert not data.labelled
    np.testing.assert_array_equal(_all(data), x.astype(np.float32))
    with pytest.raises(DataError, match="drop it"):
        open_dataset(tmp_path / "d.npy", VECTOR, preprocess="imagenet")


def test_npz_by_input_name(tmp_path: Path) -> None:
    ids, mask = np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((3, 4))
    np.savez(tmp_path / "d.npz", ids=ids, mask=mask, labels=np.array([2, 1, 0]))
    data = open_dataset(tmp_path / "d.npz", PAIR)
    batch = next(data.batches(8))
    assert batch.inputs["ids"].dtype == np.int64
    np.testing.assert_array_equal(batch.inputs["ids"], ids)
    assert _labels(data) == [2, 1, 0]


def test_folder_of_npz_with_samples_and_batches_of_changing_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", ids=np.arange(4), mask=np.ones(4))
    np.savez(tmp_path / "1.npz", ids=np.arange(8).reshape(2, 4), mask=np.ones((2, 4)))
    np.savez(tmp_path / "2.npz", ids=np.arange(7), mask=np.ones(7))
    data = open_dataset(tmp_path, PAIR)
    assert len(data) == 4
    assert [batch.inputs["ids"].shape for batch in data.batches(8)] == [(3, 4), (1, 7)]


def _write_test_set(folder: Path, arrays: list[Array]) -> None:
    folder.mkdir()
    for number, array in enumerate(arrays):
        (folder / f"input_{number}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())


def test_protobufs_with_a_batch_axis(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    for number in (0, 1, 10):
        _write_test_set(tmp_path / f"test_data_set_{number}", [x[min(number, 2)]])
    data = open_dataset(tmp_path, VECTOR)
    np.testing.assert_array_equal(_all(data), x.reshape(6, 5))
    assert len(open_dataset(tmp_path / "test_data_set_10", VECTOR)) == 2


def test_protobufs_without_a_batch_axis_are_whole_feeds(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    for number in range(2):
        _write_test_set(tmp_path / f"test_data_set_{number}", [x * number, np.asarray(number, np.float32)])
    data = open_dataset(tmp_path, SCALAR)
    assert len(data) == 2
    factors = [float(batch.inputs["factor"]) for batch in data.batches(16)]
    assert factors == [0.0, 1.0]


_MODULE = """
import numpy as np
def pairs():
    for i in range(4):
        yield np.full(5, i, np.float32), i
def dicts():
    return [{"input": np.full((2, 5), i, np.float32)} for i in range(2)]
def number():
    return 3
constant = 1
"""


def test_callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_feed.py").write_text(_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_feed", raising=False)
    pairs = open_dataset("my_feed:pairs", VECTOR)
    assert _labels(pairs) == [0, 1, 2, 3]
    np.testing.assert_array_equal(_all(pairs)[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(_all(pairs.subset([3, 1]))[:, 0], [3, 1])
    np.testing.assert_array_equal(_all(open_dataset("my_feed:dicts", VECTOR))[:, 0], [0, 0, 1, 1])
    for spec in ("my_feed:absent", "no_module_of_this_name:x", "my_feed:constant", "my_feed:number"):
        with pytest.raises(DataError, match=spec):
            open_dataset(spec, VECTOR)


class _Table:
    column_names = ("image", "label")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: Any) -> Any:
        images = [Image.fromarray(image) for image in _pixels(3)]
        return [4, 5, 6] if key == "label" else {"image": images[key], "label": 4 + key}


def test_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("datasets")
    module.get_dataset_split_names = lambda name: ["train", "test"]  # type: ignore[attr-defined]
    module.load_dataset = lambda name, split: _Table()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    data = open_dataset("hf:someone/things:test", IMAGE, preprocess="none")
    assert _labels(data) == [4, 5, 6]
    np.testing.assert_array_equal(_all(data), _pixels(3).transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="there are train, test"):
        open_dataset("hf:someone/things", IMAGE, preprocess="none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        open_dataset("hf:someone/things", IMAGE, preprocess="none")


def test_random_data_is_seeded_and_refuses_free_shapes() -> None:
    first, second = random_dataset(VECTOR, 4, 0), random_dataset(VECTOR, 4, 1)
    np.testing.assert_array_equal(_all(first), _all(random_dataset(VECTOR, 4, 0)))
    assert first.fingerprint() != second.fingerprint()
    with pytest.raises(DataError, match="free shape"):
        random_dataset(PAIR, 4, 0)


def _bad_cases(root: Path) -> Iterator[tuple[str, Path, list[InputSpec], str | None, str]]:
    """(name, what to open, inputs, preprocess, text of the message)."""
    yield "missing", root / "absent", IMAGE, "none", "absent.*does not exist"
    (root / "empty").mkdir()
    yield "empty", root / "empty", IMAGE, "none", "images or .npz files"
    for name, text, message in (
        ("malformed", "a.png\n", "labels.txt:1: 'a.png' is malformed"),
        ("negative", "a.png -1\n", "malformed"),
        ("lost", "a.png 0\nb.png 1\n", "labels.txt:2: image 'b.png' does not exist"),
        ("blank", "\n", "no lines"),
    ):
        _write_images(root / name, ["a.png"])
        (root / name / "labels.txt").write_text(text)
        yield name, root / name, IMAGE, "none", message
    (root / "noimage").mkdir()
    (root / "noimage" / "x.jpg").write_text("hello")
    yield "noimage", root / "noimage", IMAGE, "none", "x.jpg: not a readable image"
    _write_images(root / "mixed", ["a.png", "c/a.png"])
    yield "mixed", root / "mixed", IMAGE, "none", "both beside and inside"
    _write_images(root / "shape", ["a.png"])
    other = [InputSpec("data", F32, ("N", 3, 8, 8))]
    yield "shape", root / "shape", other, "none", "3x4x6 but model input 'data' takes 3x8x8.*`preprocess`"
    yield "nopre", root / "shape", IMAGE, None, "images need `preprocess`"
    yield "two inputs", root / "shape", PAIR, "none", "ids, mask"
    np.savez(root / "lengths.npz", x=np.zeros((4, 5)), y=np.arange(3))
    yield "lengths", root / "lengths.npz", VECTOR, None, "different lengths"
    np.savez(root / "names.npz", ids=np.zeros((4, 5)))
    yield "names", root / "names.npz", PAIR, None, "ids, mask"
    np.savez(root / "floats.npz", x=np.zeros((4, 5)), y=np.zeros(4))
    yield "float labels", root / "floats.npz", VECTOR, None, "labels are float64"
    np.savez(root / "ids.npz", ids=np.full((2, 3), 0.5), mask=np.ones((2, 3)))
    yield "float ids", root / "ids.npz", PAIR, None, "do not fit int64"
    (root / "text.npz").write_text("hello")
    yield "no npz", root / "text.npz", VECTOR, None, "cannot be read as .npz"
    (root / "text.npy").write_text("hello")
    yield "no npy", root / "text.npy", VECTOR, None, "cannot be read as an array"
    np.save(root / "none.npy", np.zeros((0, 5)))
    yield "no rows", root / "none.npy", VECTOR, None, "no samples"
    (root / "text.csv").write_text("1,2")
    yield "csv", root / "text.csv", VECTOR, None, "no data format"
    (root / "pb").mkdir()
    (root / "pb" / "input_0.pb").write_bytes(b"\xff\xff")
    yield "no pb", root / "pb", VECTOR, None, "input_0.pb: cannot be read"
    (root / "parts").mkdir()
    np.savez(root / "parts" / "0.npz", x=np.zeros(5), y=1)
    np.savez(root / "parts" / "1.npz", x=np.zeros(5))
    yield "some labels", root / "parts", VECTOR, None, "1.npz: no labels"


@pytest.fixture(name="bad_cases")
def _fixture_bad_cases(tmp_path: Path) -> list[tuple[str, Path, list[InputSpec], str | None, str]]:
    return list(_bad_cases(tmp_path))


def test_each_mistake_is_one_data_error(
    bad_cases: list[tuple[str, Path, list[InputSpec], str | None, str]],
) -> None:
    for name, path, inputs, preprocess, message in bad_cases:
        with pytest.raises(DataError, match=message) as raised:
            open_dataset(path, inputs, preprocess=preprocess)
        assert "\n" not in str(raised.value), name


def test_labels_out_of_range_name_file_and_value(tmp_path: Path) -> None:
    _write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "labels.txt").write_text("a.png 0\nb.png 10\n")
    data = open_dataset(tmp_path, IMAGE, preprocess="none")
    check_labels(data, 11)
    with pytest.raises(DataError, match=r"b\.png: label 10 is outside 0\.\.9"):
        check_labels(data, 10)


def test_input_specs() -> None:
    from onnxq.data import fit_batch, input_specs

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", 3, None])
    constant = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3])
    graph = onnx.helper.make_graph(
        [], "g", [value, constant], [], [numpy_helper.from_array(np.zeros(3, np.float32), "w")]
    )
    specs = input_specs(onnx.helper.make_model(graph))
    assert specs == [InputSpec("x", np.dtype(np.float16), ("N", 3, None))]
    assert fit_batch(16, specs) == 16
    assert fit_batch(16, [InputSpec("x", F32, (4, 3))]) == 4
    assert fit_batch(16, SCALAR) == 16
    with pytest.raises(DataError, match="not positive"):
        fit_batch(0, specs)
