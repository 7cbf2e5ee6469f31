"""Which opset a model ends at: within the runtime's limit, no newer than needed, imported by one name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

from benchmarks.opset_sweep import equal, run
from passes.core.base import Context
from passes.core.errors import InvalidModelError, UnsupportedModelError
from passes.graph.model import Model, check, load, normalized
from passes.opset import upgrade
from passes.opset.runtime import newest_runtime_opset
from passes.quantize import Quantize

NEWEST = newest_runtime_opset()


def parsed(body: str, opset: int, ir: int = 8, more: str = "") -> Model:
    return Model(
        onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{more}]>\n{body}'), "net.onnx"
    )


def _limited(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("passes.opset.upgrading.newest_runtime_opset", lambda: limit)


def test_a_model_newer_than_the_runtime_is_brought_down(monkeypatch: pytest.MonkeyPatch) -> None:
    _limited(monkeypatch, 17)
    text = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w>
        { h = MatMul (x, w) i = Cast <to = 7, saturate = 1> (h) f = Cast <to = 1> (i) y = Relu (f) }"""
    model = parsed(text.replace("<float[4,4] w>", ""), 21, ir=10)
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32), "w")
    model.proto.graph.initializer.append(weight)
    context = Context()
    lowered = upgrade(model, 13, "the test", context)
    assert lowered.opset() == 17
    assert "opset 21 lowered to 17" in context.notes[0].reason
    check(lowered)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32) * 9}
    assert equal(run(model.proto, feed), run(lowered.proto, feed))
    assert Quantize(activations="float")(model).model.opset() == 17


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[2] x) => (float[2] y) { [act] y = Gelu (x) }",
            r"node 'act' \(Gelu\): opset 17 does not have it",
        ),
        (
            "g (float[2,2] x, int64[1] a) => (float[2,1] y) { [sum] y = ReduceMax (x, a) }",
            r"node 'sum' \(ReduceMax\): it has 2 inputs",
        ),
        (
            "g (float[2] x) => (float8e4m3fn[2] y) { [to8] y = Cast <to = 17> (x) }",
            r"node 'to8' \(Cast\): 'y' is a tensor\(float8e4m3fn\)",
        ),
    ],
)
def test_what_needs_the_newer_opset_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    _limited(monkeypatch, 17)
    with pytest.raises(UnsupportedModelError, match=rf"{reason}.*export it again at opset 17 or older"):
        upgrade(parsed(text, 21, ir=10), 13, "the test", Context())


def test_the_limit_is_asked_of_the_installed_runtime() -> None:
    """A session with QuantizeLinear opens at the limit, and at none above it that onnx knows."""

    def opens(opset: int) -> bool:
        text = f"""<ir_version: 10, opset_import: ["" : {opset}]> g (float[2] x) => (uint8[2] y)
            <float s = {{0.5}}, uint8 z = {{3}}> {{ y = QuantizeLinear (x, s, z) }}"""
        try:
            ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no class in common
            return False
        return True

    assert [opset for opset in range(NEWEST, defs.onnx_opset_version() + 1) if opens(opset)] == [NEWEST]


def test_no_scheme_takes_a_newer_opset_than_it_needs() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8))
    wanted = {
        ("int8", "float"): 10,
        ("int8:channel", "float"): 13,
        ("gse5", "float"): 14,
        ("int5:channel", "float"): 14,
        ("int8", "uint8:dynamic"): 11,
        ("int4:channel", "float"): 21,
    }
    for dtype, least in ((np.float32, 10), (np.float16, 10)):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        values = [helper.make_tensor_value_info(name, element, ["N", 8]) for name in "xy"]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
            "g",
            values[:1],
            values[1:],
            [numpy_helper.from_array(weight.astype(dtype), "w")],
        )
        model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", least)], ir_version=5))
        for (weights, activations), opset in wanted.items():
            # A scale of float16 takes 19; float16 layers keep their activations.
            scaled = dtype == np.float16 and not weights.startswith(("gse", "int5"))
            made = Quantize(weights=weights, activations=activations)(model).model
            assert made.opset() == (max(opset, 19) if scaled else opset), (weights, activations, dtype)
            x = np.random.default_rng(1).standard_normal((3, 8)).astype(dtype)
            assert np.isfinite(run(made.proto, {"x": x})[0]).all()


def _spelled(imports: Sequence[tuple[str, int]], domain: str) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "mm", domain=domain),
        helper.make_node("Relu", ["h"], ["y"], "act"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid(*entry) for entry in imports]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("imports", [[("ai.onnx", 12)], [("", 12)], [("ai.onnx", 12), ("", 12)]])
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_alias_of_the_standard_domain_is_one_word(
    imports: Sequence[tuple[str, int]], domain: str, tmp_path: Path
) -> None:
    proto = _spelled(imports, domain)
    before = proto.SerializeToString(deterministic=True)
    (tmp_path / "m.onnx").write_bytes(before)
    feed = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    wanted = run(proto, feed)[0]
    for model in (Model(proto), load(tmp_path / "m.onnx")):
        quantized = Quantize(activations="float")(model).model
        for made in (normalized(model), quantized):
            check(made)
            assert [entry.domain for entry in made.proto.opset_import] == [""]
            assert not [node for node in made.proto.graph.node if node.domain]
            assert np.allclose(run(made.proto, feed)[0], wanted, atol=0.1)
    assert proto.SerializeToString(deterministic=True) == before


def test_two_versions_of_one_operator_set_are_refused() -> None:
    """The checker would obey '', ONNX Runtime the last of the two."""
    with pytest.raises(InvalidModelError, match=r"'ai\.onnx' twice, at versions 12 and 9"):
        normalized(Model(_spelled([("ai.onnx", 12), ("", 9)], "")))
