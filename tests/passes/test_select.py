"""Selectors: each kind, and the error that lists near names."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.core.errors import SelectorError
from passes.graph.boundary import import_graph
from passes.graph.model import Model
from passes.graph.select import select, select_layers

MODEL = Model(
    onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2,4,4] x) => (float[N,3] y)
<float[2,1,1,1] dw = {1, 2}, float[2,2,1,1] pw = {1, 2, 3, 4}, float[32,3] fc, float[2,3] other> {
  [stem_conv_dw] a = Conv <group = 2> (x, dw)
  [body_conv_pw] b = Conv (a, pw)
  r = Relu (b)
  [body_conv_pw2] c = Conv (r, pw)
  d = Add (c, a)
  f = Flatten (d)
  [head] y = Gemm (f, fc)
}"""
    )
)
for _name, _shape in (("fc", (32, 3)), ("other", (2, 3))):
    MODEL.proto.graph.initializer.append(numpy_helper.from_array(np.ones(_shape, np.float32), _name))


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("all", ["stem_conv_dw", "body_conv_pw", "body_conv_pw2", "head"]),
        ("head", ["head"]),
        ("body_*", ["body_conv_pw", "body_conv_pw2"]),
        ("*_conv_?w", ["stem_conv_dw", "body_conv_pw"]),
        ("op:Gemm", ["head"]),
        ("depthwise", ["stem_conv_dw"]),
        ("first", ["stem_conv_dw"]),
        ("first:2", ["stem_conv_dw", "body_conv_pw"]),
        ("last", ["head"]),
        ("last:2", ["body_conv_pw2", "head"]),
        ("last:99", ["stem_conv_dw", "body_conv_pw", "body_conv_pw2", "head"]),
        ("re:pw2?$", ["body_conv_pw", "body_conv_pw2"]),
        ("between:a..d", ["body_conv_pw", "body_conv_pw2"]),
        ("between:x..y", ["stem_conv_dw", "body_conv_pw", "body_conv_pw2", "head"]),
    ],
)
def test_selectors(selector: str, names: list[str]) -> None:
    assert [layer.name for layer in select_layers(MODEL, [selector])] == names


def test_several_are_joined_in_graph_order() -> None:
    assert [layer.name for layer in select_layers(MODEL, ["last", "first", "head"])] == [
        "stem_conv_dw",
        "head",
    ]


@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ("stem_conv_dv", "stem_conv_dw"),
        ("body_convpw2", "body_conv_pw2"),
        ("zzz", "near names: stem_conv_dw, body_conv_pw"),
        ("op:Softmax", "matches no layer"),
        ("re:(", "not a regular expression"),
        ("between:a..nope", "no tensor 'nope'"),
        ("between:a", "write between:TENSOR..TENSOR"),
        ("between:y..x", "matches no layer"),
        ("", "matches no layer"),
    ],
)
def test_no_match_is_an_error_with_near_names(selector: str, near: str) -> None:
    with pytest.raises(SelectorError) as caught:
        select_layers(MODEL, [selector])
    assert near in str(caught.value)


def test_a_model_without_layers_says_so() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    with pytest.raises(SelectorError, match="no quantizable layer"):
        select_layers(Model(onnx.parser.parse_model(text)), ["all"])


def test_a_ladder_of_diamonds_costs_linear_time() -> None:
    nodes, last = [], "x"
    for rung in range(3334):
        nodes += [
            helper.make_node("Relu", [last], [f"a{rung}"]),
            helper.make_node("Neg", [last], [f"b{rung}"]),
            helper.make_node("Add", [f"a{rung}", f"b{rung}"], [f"c{rung}"]),
        ]
        last = f"c{rung}"
    nodes.append(helper.make_node("MatMul", [last, "w"], ["y"], name="only"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    graph = helper.make_graph(nodes, "ladder", ends[:1], ends[1:], [weight])
    imported = import_graph(Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))
    start = time.process_time()
    assert [layer.name for layer in select(imported, ["between:x..y"])] == ["only"]
    assert time.process_time() - start < 1.0
