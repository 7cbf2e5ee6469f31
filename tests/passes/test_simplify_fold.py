"""simplify and fold_batchnorm on a real export, and on what the golden files cannot say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.core.base import Context
from passes.core.errors import GraphError
from passes.fold_batchnorm import FoldBatchNorm
from passes.graph.model import Model, check, load
from passes.preparation import preparation
from passes.simplify import Simplify

EXPORT = Path(__file__).resolve().parents[3] / "shared" / "models" / "efficientnet_lite0.onnx"


def session(model: Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = model.proto.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@pytest.mark.skipif(not EXPORT.is_file(), reason="../shared/models/efficientnet_lite0.onnx is not there")
def test_a_real_export() -> None:
    model, recipe = load(EXPORT), Simplify() | FoldBatchNorm()
    result = recipe(model).model
    kinds = Counter(node.op_type for node in result.proto.graph.node)
    gone = {"BatchNormalization", "Constant", "Gather", "Identity", "Pad", "Shape"}
    assert not gone & kinds.keys()
    assert kinds["Conv"] == 49
    assert list(result.proto.graph.input) == list(model.proto.graph.input)
    assert list(result.proto.graph.output) == list(model.proto.graph.output)
    check(result)
    assert not recipe(result).modified
    before, after = session(model), session(result)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224)).astype(np.float32)
        wanted, got = (opened.run(None, {"input": x})[0] for opened in (before, after))
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def _conv_bn(dtype: npt.DTypeLike, scale: float = 1.0, variance: float = 1.0) -> Model:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {"w": np.ones((2, 2, 1, 1)), "s": [scale, 1], "b": [0, 1], "m": [0, 1], "v": [variance, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"], name="bn"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("y", kind, [1, 2, 3, 3])],
        [numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in arrays.items()],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "cb")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_weights_dtype_is_kept(dtype: npt.DTypeLike) -> None:
    result = FoldBatchNorm()(_conv_bn(dtype, scale=3.0, variance=4.0)).model
    weights = {t.name: numpy_helper.to_array(t) for t in result.proto.graph.initializer}
    assert {array.dtype for array in weights.values()} == {np.dtype(dtype)}
    exact = 3.0 / np.sqrt(4.0 + float(np.float32(1e-5)))
    assert weights["w_1"][0, 0, 0, 0] == np.float64(exact).astype(dtype)


def test_what_overflows_is_refused() -> None:
    context = Context()
    result = FoldBatchNorm(standalone="keep")(_conv_bn(np.float16, scale=6e4, variance=1e-4), context)
    assert not result.modified
    assert [note.node for note in context.notes] == ["bn"]
    assert "not finite in float16" in context.notes[0].reason


@pytest.mark.parametrize("training", [{"training_mode": 1}, {}], ids=["attribute", "outputs"])
def test_training_mode_is_refused(training: dict[str, int]) -> None:
    model = _conv_bn(np.float32)
    node = model.proto.graph.node[1]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in training.items())
    node.output.extend(["rm", "rv"])
    context = Context(check=False)
    assert not FoldBatchNorm()(model, context).modified
    assert "training mode" in context.notes[0].reason


def test_old_opsets_are_refused_and_skipped_as_a_courtesy() -> None:
    model = _conv_bn(np.float32)
    model.proto.opset_import[0].version = 6
    for recipe in (Simplify(), FoldBatchNorm()):
        with pytest.raises(GraphError, match=rf"pass '{recipe.name}' .*opset 6 is before 7"):
            recipe(model)
    context = Context()
    result = preparation()(model, context)
    assert result.model is model
    assert [note.kind for note in context.notes] == ["skipped", "skipped"]
    assert all("opset 6 is before 7" in note.reason for note in context.notes)


def test_a_chain_of_batchnorms_ends_in_the_conv() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2,3,3] x) => (float[N,2,3,3] y)
<float[2] s = {1, 2}, float[2] b = {1, 2}, float[2] m = {0, 1}, float[2] v = {1, 2},
 float[2,2,1,1] w = {1,2,3,4}> {
  p = BatchNormalization (x, s, b, m, v)
  q = BatchNormalization (p, s, b, m, v)
  a = Conv (q, w)
  y = BatchNormalization (a, s, b, m, v)
}"""
    model = Model(onnx.parser.parse_model(text))
    result = FoldBatchNorm()(model)
    assert [node.op_type for node in result.model.proto.graph.node] == ["Conv"]
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
    wanted, got = (session(m).run(None, {"x": x})[0] for m in (model, result.model))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_inside_a_branch() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
g (bool c, float[1,2,3,3] x) => (float[1,2,3,3] y)
<float[2] s = {1, 2}, float[2] b = {1, 2}, float[2] m = {0, 1}, float[2] v = {1, 2},
 float[2,2,1,1] w = {1,2,3,4}> {
  outer = Conv (x, w)
  y = If (c) <
    then_branch = t () => (float[1,2,3,3] o) { i = Conv (x, w) o = BatchNormalization (i, s, b, m, v) },
    else_branch = e () => (float[1,2,3,3] o) { o = BatchNormalization (outer, s, b, m, v) }
  >
}"""
    model = Model(onnx.parser.parse_model(text))
    result = FoldBatchNorm(standalone="keep")(model)
    assert result.modified
    branches = {a.name: [n.op_type for n in a.g.node] for a in result.model.proto.graph.node[1].attribute}
    assert branches == {"then_branch": ["Conv"], "else_branch": ["BatchNormalization"]}
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32)
    for flag in (True, False):
        wanted, got = (session(m).run(None, {"x": x, "c": np.array(flag)})[0] for m in (model, result.model))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_unused_weights_go() -> None:
    model = _conv_bn(np.float32)
    model.proto.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "unused"))
    result = Simplify()(model)
    assert result.modified
    assert "unused" not in {tensor.name for tensor in result.model.proto.graph.initializer}
    assert not Simplify()(result.model).modified


def test_below_ir_4_branches_keep_their_constants() -> None:
    text = """<ir_version: 3, opset_import: ["" : 9]>
g (bool c, float[2] x) => (float[2] y) {
  y = If (c) <
    then_branch = t () => (float[2] o) {
      k = Constant <value = float[2] {1, 2}> () n = Neg (k) o = Add (x, n)
    },
    else_branch = e () => (float[2] o) { i = Identity (x) o = Neg (i) }
  >
}"""
    model = Model(onnx.parser.parse_model(text))
    result = Simplify()(model)
    check(result.model)
    branches = {a.name: [n.op_type for n in a.g.node] for a in result.model.proto.graph.node[0].attribute}
    assert branches == {"then_branch": ["Constant", "Neg", "Add"], "else_branch": ["Neg"]}


def test_a_weight_of_a_type_numpy_lacks_is_no_obstacle() -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Add", ["i", "c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = Simplify()(model)
    assert [node.op_type for node in result.model.proto.graph.node] == ["Cast", "Add"]
    assert result.model.proto.graph.initializer[0] == weight


def test_an_input_whose_default_is_folded_is_told_of() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2] x, float[2] k) => (float[N,2] y) <float[2] k = {1, 2}> { n = Neg (k) y = Add (x, n) }"""
    context = Context()
    result = FoldBatchNorm()(Simplify()(Model(onnx.parser.parse_model(text)), context).model, context)
    assert [value.name for value in result.model.proto.graph.input] == ["x"]
    assert any("input 'k': the default is a constant now" in note.reason for note in context.notes)


def test_constants_that_stay_computed_are_one_remark_for_all_graphs() -> None:
    branch = (
        "n{0} = Constant <value = int64[1] {{4096}}> () b{0} = ConstantOfShape (n{0}) o{0} = Add (x, b{0})"
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4096] x, bool c) => (float[N,4096] y) {{
      y = If (c) <then_branch = t () => (float[N,4096] o1) {{ {branch.format(1)} }},
                  else_branch = e () => (float[N,4096] o2) {{ {branch.format(2)} }}>
    }}"""
    model = Model(onnx.parser.parse_model(text))
    result = Simplify()(model)
    told = [note.reason for note in result.notes if "stay computed" in note.reason]
    assert len(told) == 1
    assert int(told[0].split()[-2]) >= 2 * 4096 * 4
