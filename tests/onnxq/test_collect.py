"""One pass gathers what numpy finds, in bounded memory, and the cache returns the very same bits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.calibration import CalibratedRanges, StatisticsCache, TensorStatistics, collect, model_digest
from onnxq.calibration import ranges as ranges_module
from onnxq.data import Dataset, InputSpec, input_specs, open_dataset, random_dataset
from passes import Decode, Quantize
from passes.core.errors import DataError, GraphError, ModelFileError, UnsupportedModelError
from passes.graph import model as passes_model
from tests.nets import Net

WIDTH = 8


def _model(batch: int | str = "N", width: int = WIDTH, scale: float = 1.0) -> onnx.ModelProto:
    """x -> MatMul(w) -> h -> Relu -> y"""
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) * scale
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _data(model: onnx.ModelProto, count: int = 40, seed: int = 0) -> Dataset:
    return random_dataset(input_specs(model), count, seed)


def _x(data: Dataset) -> NDArray[np.float32]:
    return np.concatenate([batch.inputs["x"] for batch in data.batches(16)])


def _bits(statistics: dict[str, TensorStatistics]) -> list[tuple[str, bytes, bytes]]:
    arrays = [(name, *stats.to_arrays()) for name, stats in statistics.items()]
    return [(name, span.tobytes(), numbers.tobytes()) for name, span, numbers in arrays]


def test_statistics_are_those_of_the_activations() -> None:
    model = _model()
    data = _data(model)
    done: list[int] = []
    found = collect(model, ["y", "x", "h", "w"], data, batch_size=7, threads=1, progress=done.append)
    assert list(found) == ["y", "x", "h", "w"]
    x = _x(data)
    w = numpy_helper.to_array(model.graph.initializer[0])
    expected = {"x": x, "w": w, "h": x @ w, "y": np.maximum(x @ w, 0)}
    for name, values in expected.items():
        assert found[name].count == values.size
        assert found[name].min == pytest.approx(values.min(), rel=1e-5)
        assert found[name].max == pytest.approx(values.max(), rel=1e-5)
    assert done[0] == 1
    assert done[-1] == 40
    assert len(model.graph.output) == 1


def test_neither_batch_nor_budget_nor_path_changes_the_counts(tmp_path: Path) -> None:
    model = _model()
    onnx.save(model, tmp_path / "m.onnx")
    data = _data(model)
    reference = collect(model, ["x", "h", "y"], data, batch_size=1, threads=1)
    for batch_size, budget in ((3, 2**20), (64, 2**20), (64, 200), (64, 1)):
        found = collect(tmp_path / "m.onnx", ["x", "h", "y"], data, batch_size=batch_size, budget=budget)
        for name, stats in found.items():
            assert stats.count == reference[name].count
            assert stats.max == pytest.approx(reference[name].max, rel=1e-5)


def test_a_model_above_2_gb_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(width=64)
    data = _data(model)
    direct = collect(model, ["h"], data, threads=1)
    monkeypatch.setattr(passes_model, "LARGE", 0)
    assert _bits(collect(model, ["h"], data, threads=1)) == _bits(direct)


def test_fixed_batches() -> None:
    model = _model(batch=4)
    assert collect(model, ["h"], _data(model, 12))["h"].count == 12 * WIDTH
    assert collect(_model(batch=1), ["h"], _data(model, 5))["h"].count == 5 * WIDTH
    with pytest.raises(DataError, match="10 samples do not fill the model's batches of 4"):
        collect(model, ["h"], _data(model, 10))


def test_whole_feeds(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3]), value("f", TensorProto.FLOAT, [])],
        [value("y", TensorProto.FLOAT, [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.ones((2, 3), np.float32), f=np.float32(number))
    found = collect(model, ["y"], open_dataset(tmp_path, input_specs(model)))["y"]
    assert (found.count, found.min, found.max) == (18, 0, 2)


def test_mistakes(tmp_path: Path) -> None:
    model = _model()
    with pytest.raises(GraphError, match=r"'hh' is not in the model; near names: h"):
        collect(model, ["hh"], _data(model))
    with pytest.raises(ModelFileError, match="absent"):
        collect(tmp_path / "absent.onnx", ["h"], _data(model))
    huge = _model(scale=1e38)
    with pytest.raises(DataError, match=r"tensor 'h'.*NaN or infinity"):
        collect(huge, ["h"], _data(huge, 400))
    with pytest.raises(DataError, match="cannot run the model"):
        collect(model, ["h"], random_dataset([InputSpec("x", np.dtype(np.float32), ("N", 3))], 2, 0))
    broken = _model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UnsupportedModelError, match="uses the op NoSuchOperator"):
        collect(broken, ["h"], _data(model))


def _peak(samples: int) -> int:
    model = _model(width=512)
    data = _data(model, samples)
    tracemalloc.start()
    collect(model, ["x", "h", "y"], data, batch_size=8, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_samples() -> None:
    _peak(16)
    assert _peak(256) < 1.1 * _peak(32)


def test_cache_on_is_cache_off_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = _model(), StatisticsCache(tmp_path / "cache")
    data, names = _data(model), ["y", "h", "x"]
    off = CalibratedRanges(data).statistics(model, names)
    first = CalibratedRanges(data, cache=cache).statistics(model, names)
    monkeypatch.setattr(ranges_module, "collect", _forbidden)
    second = CalibratedRanges(_data(model), cache=cache).statistics(_model(), names[::-1])
    assert _bits(off) == _bits(first) == _bits({name: second[name] for name in names})
    for provider, other, tensors in (
        (CalibratedRanges(_data(model, seed=1), cache=cache), model, names),
        (CalibratedRanges(data, cache=cache), _model(scale=2), names),
        (CalibratedRanges(data, cache=cache), model, ["h"]),
        (CalibratedRanges(data, cache=cache, batch_size=2), model, names),
    ):
        with pytest.raises(AssertionError, match="collected again"):
            provider.statistics(other, tensors)


def _forbidden(model: onnx.ModelProto, tensors: Sequence[str], data: Dataset, **_: object) -> None:
    raise AssertionError("collected again")


def test_a_damaged_cache_file_is_a_data_error(tmp_path: Path) -> None:
    model, cache = _model(), StatisticsCache(tmp_path)
    CalibratedRanges(_data(model), cache=cache).statistics(model, ["h"])
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="delete the file"):
        CalibratedRanges(_data(model), cache=cache).statistics(model, ["h"])


def test_a_range_provider_runs_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    passes: list[Sequence[str]] = []

    def counting(model: onnx.ModelProto, tensors: Sequence[str], *rest: object, **more: object) -> object:
        passes.append(tensors)
        return collect(model, tensors, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ranges_module, "collect", counting)
    provider = CalibratedRanges(_data(model), "percentile:99", threads=1)
    both = provider(model, [("h", 8), ("y", 4)])
    assert provider(model, [("y", 4)]) == {"y": both["y"]}
    assert passes == [["h", "y"]]
    provider(model, [("x", 8), ("h", 8)])
    assert passes == [["h", "y"], ["x"]]
    assert both["y"][0] == 0


def test_model_digest_is_of_content() -> None:
    assert model_digest(_model()) == model_digest(_model())
    renamed = _model()
    renamed.graph.node[1].name = "other"
    prints = {model_digest(m) for m in (_model(), _model(batch=2), _model(scale=3), renamed)}
    assert len(prints) == 4


def test_packed_weights_are_calibrated_as_their_float_self() -> None:
    """Calibration goes through the loader as everything does: what it sees is what float weights give."""
    net = Net()
    x = net.conv(net.input("x", ["N", 8, 6, 6]), 8, 8, act="relu")
    model = Quantize(weights="gse4", activations="float")(net.model(net.conv(x, 8, 8))).model
    plain = Decode()(model).model
    names = [node.output[0] for node in plain.proto.graph.node]
    data = _data(plain.proto)
    assert _bits(collect(model.proto, names, data)) == _bits(collect(plain.proto, names, data))
