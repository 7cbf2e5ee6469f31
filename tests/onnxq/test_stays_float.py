"""What stays float in a file is found wherever it is stored, and told by `quantize`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper

from onnxq.cli.stays_float import float_share_text
from onnxq.float_share import SMALL, FloatWeight, float_weights
from passes.graph.model import Model

Invoke = Callable[..., Result]
VALUE = helper.make_tensor_value_info


def weight(name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def text_classifier() -> onnx.ModelProto:
    """Embedding, LSTM, head; a function with a weight in it and one that is handed a weight."""
    constant = helper.make_node("Constant", [], ["k"], value=weight("k", 4, 4))
    body = [constant, helper.make_node("Mul", ["a", "k"], ["b"]), helper.make_node("Add", ["b", "c"], ["o"])]
    opset = [helper.make_opsetid("", 17)]
    scale = helper.make_function("pkg", "Scale", ["a", "c"], ["o"], body, opset)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "lookup"),
        helper.make_node("Transpose", ["e"], ["t"], "turn", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W", "R", "B"], ["", "h"], "lstm", hidden_size=16),
        helper.make_node("Squeeze", ["h", "axes"], ["s"], "squeeze"),
        helper.make_node("MatMul", ["s", "w"], ["m"], "head"),
        helper.make_node("Add", ["m", "bias"], ["p"], "shift"),
        helper.make_node("Scale", ["p", "given"], ["y"], "scale", domain="pkg"),
    ]
    held = [
        weight("table", 200, 32),
        weight("W", 1, 64, 32),
        weight("R", 1, 64, 16),
        weight("B", 1, 128),
        numpy_helper.from_array(np.array([0]), "axes"),
        weight("w", 16, 4),
        weight("bias", 1, 4),
        weight("given", 4, 4),
    ]
    graph = helper.make_graph(
        nodes, "g", [VALUE("ids", TensorProto.INT64, [4, 7])], [VALUE("y", TensorProto.FLOAT, [4, 4])], held
    )
    imports = [*opset, helper.make_opsetid("pkg", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[scale], ir_version=8)


def found(proto: onnx.ModelProto) -> list[tuple[str, str, str, str, int]]:
    return [(w.tensor, w.kind, w.node, w.place, w.bytes) for w in float_weights(Model(proto, "m"))]


def test_every_float_weight_is_found_where_it_is_stored() -> None:
    assert found(text_classifier()) == [
        ("table", "embedding", "table", "", 25600),
        ("W", "LSTM", "lstm", "", 8192),
        ("R", "LSTM", "lstm", "", 4096),
        ("B", "LSTM", "lstm", "", 512),
        ("w", "layer", "head", "", 256),
        ("given", "function", "scale", "", 64),
        ("k", "Mul", "b", "pkg::Scale", 64),
        ("bias", SMALL, "shift", "", 16),
    ]


def test_subgraphs_sparse_tensors_constants_and_other_types() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,6] x, bool c) => (float[N,6] y) {
      small = Constant <value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> ()
      h = Mul (x, small)
      [choice] r = If (c) <then_branch = a () => (float[N,6] z) { [inner] z = MatMul (h, w) },
                  else_branch = b () => (float[N,6] z) { q = MatMul (h, s)  z = Identity (q) }>
      [last] d = MatMul (r, turned)
      turned = Transpose (half)
      y = Identity (d)
    }""")
    proto.graph.node.insert(2, proto.graph.node[4])
    del proto.graph.node[5]
    branches = {attribute.name: attribute.g for attribute in proto.graph.node[3].attribute}
    branches["then_branch"].initializer.append(weight("w", 6, 6))
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [3, 5])
    branches["else_branch"].sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 6]))
    branches["else_branch"].node[0].name = "thin"
    proto.graph.initializer.append(weight("half", 6, 6, dtype=np.float16))
    assert found(proto) == [
        ("w", "layer", "inner", "choice", 144),
        ("half", "layer", "last", "", 72),
        ("small", SMALL, "h", "", 24),
        ("s", "layer", "thin", "choice", 8),
    ]


def test_scales_of_what_is_quantized_are_not_told() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    net (float[N,4] x) => (float[N,4] y) <int8[4,4] q = {1}, float[2,4] s = {1}, int8[2,4] z = {0}> {
      w = DequantizeLinear <axis = 0, block_size = 2> (q, s, z)
      y = MatMul (x, w)
    }""")
    assert found(proto) == []


def test_the_line() -> None:
    def entry(kind: str, node: str, size: int, dtype: str = "float32", place: str = "") -> FloatWeight:
        return FloatWeight(node, kind, node, place, dtype, size)

    small = [entry(SMALL, "b", 400)] * 3
    assert float_share_text([], 10**6) == ""
    assert float_share_text(small, 10**6) == ""
    weights: Sequence[FloatWeight] = [
        entry("embedding", "emb.weight", 2_400_000),
        entry("LSTM", "lstm", 600_000),
        entry("layer", "one", 1_000, "float64"),
        entry("layer", "two", 2_000, "float64"),
        *small,
    ]
    assert float_share_text(weights, 12_000_000) == (
        "3.00 MB of 12.00 MB stay float: embedding 'emb.weight' (2.40 MB), LSTM 'lstm' (600.0 kB), "
        "2 layers in float64, first 'one' (3.0 kB), 3 biases and factors (1.2 kB)"
    )
    more = [entry("function", f"f{index}", 10, place="pkg::F") for index in range(6)]
    assert float_share_text(more, 100).endswith("function 'f3' in 'pkg::F' (10 B), 2 more (20 B)")


def test_quantize_tells_it_at_the_end_and_as_json(invoke: Invoke, work: Path) -> None:
    onnx.save(text_classifier(), work / "text.onnx")
    command = ["quantize", "text.onnx", "--activations", "float", "-o", "q.onnx"]
    told = invoke(*command)
    assert told.exit_code == 0
    assert "1 of 1 layers quantized" in told.output
    assert "stay float: embedding 'table' (25.6 kB), LSTM 'lstm' (12.8 kB)" in told.output
    document = json.loads(invoke(*command, "--json").stdout)
    kinds = [entry["kind"] for entry in document["stays_float"]]
    assert kinds == ["embedding", "LSTM", "LSTM", "LSTM", "function", "Mul", SMALL]
    assert sum(entry["bytes"] for entry in document["stays_float"]) == 38_544


def test_quantize_and_apply_say_that_a_model_is_quantized_already(invoke: Invoke, work: Path) -> None:
    assert invoke("quantize", "tiny.onnx", "--activations", "float", "-o", "q.onnx").exit_code == 0
    for command in (
        ["quantize", "q.onnx", "--activations", "float"],
        ["quantize", "q.onnx", "--activations", "dynamic", "--weights", "int4"],
        ["apply", "simplify | quantize{activations=float}", "q.onnx"],
    ):
        result = invoke(*command, "-o", "again.onnx")
        assert result.exit_code == 2, result.output
        assert "q.onnx: is already quantized: its weights are codes in " in result.stderr
        assert not (work / "again.onnx").exists()
    # Nobody asked for a layer to be quantized: a copy is what was wanted.
    result = invoke("quantize", "tiny.onnx", "--activations", "float", "--exclude", "*", "-o", "copy.onnx")
    assert result.exit_code == 0
    assert "every layer is float in the policy" in result.output


def test_commands_refuse_a_graph_that_no_pass_can_edit(invoke: Invoke, work: Path) -> None:
    old = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 6]> net (float[1,4] x) => (float[1,4] y) { y = Relu (x) }'
    )
    onnx.save(old, work / "old.onnx")
    for command in (["fold"], ["apply", "fold_batchnorm"]):
        result = invoke(*command, "old.onnx", "-o", "out.onnx")
        assert result.exit_code == 2, result.output
        assert "opset 6 is before 7" in result.stderr
        assert not (work / "out.onnx").exists()
