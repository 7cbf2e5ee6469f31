"""Sessions: what is refused in one sentence, folding of weights, counting of pairs, latency in turns."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.evaluation import interleaved, load_session, surviving_qdq
from passes.core.errors import InvalidModelError, UnsupportedModelError
from passes.graph.model import Model, save
from passes.quantize import Quantize
from tests.nets import Net, apply, feeds, run


def _net() -> Model:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    return net.model(net.conv(net.conv(x, 4, 8, act="relu"), 8, 6))


def _with_op(domain: str, op: str, *, inside: bool = False) -> Model:
    node = onnx.helper.make_node(op, ["x"], ["y"], "the_node", domain=domain)
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "y")]
    if inside:
        body = onnx.helper.make_graph([node], "body", [], [value[1]])
        flag = onnx.numpy_helper.from_array(np.asarray(True), "flag")
        branch = onnx.helper.make_node("If", ["flag"], ["z"], then_branch=body, else_branch=body)
        out = onnx.helper.make_tensor_value_info("z", 1, [1, 4])
        graph = onnx.helper.make_graph([branch], "g", [value[0]], [out], [flag])
    else:
        graph = onnx.helper.make_graph([node], "g", [value[0]], [value[1]])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("someone.else", 1)]
    return Model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), "the_model.onnx")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("domain", "label"), [("someone.else", "someone.else::Frobnicate"), ("", "Frobnicate")]
)
def test_unknown_ops_are_one_sentence(domain: str, label: str, inside: bool) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        load_session(_with_op(domain, "Frobnicate", inside=inside))
    message = str(caught.value)
    assert message.startswith("the_model.onnx: node 'the_node' uses the op " + label)
    assert "\n" not in message


def test_functions_of_the_file_are_known() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,4] x) => (float[N,4] y) { y = local.double(x) }
    <domain: "local", opset_import: ["" : 17]> double (a) => (b) { b = Add(a, a) }"""
    model = Model(onnx.parser.parse_model(text))
    found = load_session(model).run(None, {"x": np.ones((1, 4), np.float32)})[0]
    np.testing.assert_array_equal(found, np.full((1, 4), 2))


def test_what_onnxruntime_refuses_is_one_sentence() -> None:
    model = _net()
    model.proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InvalidModelError, match=r"net.onnx: ONNX Runtime cannot load it: [^\n]*$"):
        load_session(model)


@pytest.mark.parametrize(
    "weights", ["int8", "int8:channel", "int4:block8", "int2:channel", "int16:channel", "uint8:channel"]
)
def test_weights_only_costs_nothing_at_run_time(weights: str, tmp_path: Path) -> None:
    model = Quantize(weights=weights, activations="float")(_net()).model
    assert surviving_qdq(model, tmp_path) == {"QuantizeLinear": 0, "DequantizeLinear": 0}
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert "Reshape" not in {node.op_type for node in optimized.graph.node}
    inputs = feeds(model)
    found = load_session(model, threads=1).run(None, inputs)[0]
    np.testing.assert_allclose(found, run(model, inputs, optimise=False)[0], rtol=1e-4, atol=1e-5)


def test_pairs_are_counted(tmp_path: Path) -> None:
    model = apply(Quantize(), _net()).model
    assert surviving_qdq(model, tmp_path) == {"QuantizeLinear": 1, "DequantizeLinear": 1}


def test_files_and_models_load_alike(tmp_path: Path) -> None:
    model = _net()
    save(model, tmp_path / "net.onnx")
    inputs = feeds(model)
    for held in (model, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        np.testing.assert_array_equal(
            load_session(held, threads=1).run(None, inputs)[0], run(model, inputs)[0]
        )


class _Clock:
    """A session that takes as long as it is told, on a clock of its own."""

    def __init__(self, now: list[float], order: list[str], name: str, cost: float) -> None:
        self.now, self.order, self.name, self.cost = now, order, name, cost

    def run(self, names: Any, feed: Any) -> None:
        self.order.append(self.name)
        self.now[0] += self.cost


def test_latency_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], list[str]()
    monkeypatch.setattr("onnxq.evaluation.latency.time.perf_counter", lambda: now[0])
    sessions = [_Clock(now, order, "a", 0.002), _Clock(now, order, "b", 0.003)]
    first, second = interleaved(sessions, {}, runs=4, warmup=1)
    assert "".join(order) == "ab" + "abba" * 2
    assert first.median == pytest.approx(2)
    assert second.median == pytest.approx(3)
    assert max(first.quartiles) == pytest.approx(2)
    assert len(first.times) == 4


def test_a_session_keeps_neither_the_model_nor_its_bytes() -> None:
    """Weights of 100 MB would otherwise stand in memory twice more, until the collector or for good."""
    model = _net()
    alive = weakref.ref(model)
    gc.disable()
    try:
        session = load_session(model, threads=1)
        del model
        assert alive() is None
    finally:
        gc.enable()
    assert session._model_bytes is None
