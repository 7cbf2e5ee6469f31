"""What graphsurgeon cannot hold comes out as it went in, beside layers that are quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from passes.core.base import Context
from passes.core.errors import GraphError
from passes.graph.boundary import export_graph, import_graph
from passes.graph.layers import find_layers
from passes.graph.model import Model, check
from passes.quantize import Quantize
from passes.simplify import Simplify

Spoil = Callable[[onnx.ModelProto], None]
NET = """<ir_version: 10, opset_import: ["" : 18, "local" : 1, "ai.onnx.ml" : 3]>
net (float[N,6] x) => (float[N,6] y) {
  h = MatMul (x, w)
  [special] y = Identity (h)
}"""


def net(spoil: Spoil) -> Model:
    proto = onnx.parser.parse_model(NET)
    weights = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    spoil(proto)
    return Model(proto, "net.onnx")


def special(proto: onnx.ModelProto) -> onnx.NodeProto:
    nodes: dict[str, onnx.NodeProto] = {node.name: node for node in proto.graph.node}
    return nodes["special"]


def custom(**attributes: AttributeProto) -> Spoil:
    def spoil(proto: onnx.ModelProto) -> None:
        node = special(proto)
        node.op_type, node.domain = "Custom", "local"
        node.attribute.add(name="before", type=AttributeProto.INT, i=3)
        for attribute in attributes.values():
            node.attribute.append(attribute)
        node.attribute.add(name="within", type=AttributeProto.STRING, s=b"text")

    return spoil


def one(kind: AttributeProto.AttributeType, **fields: Any) -> Spoil:
    return custom(attribute=AttributeProto(name="odd", type=kind, **fields))


def _tensor() -> TensorProto:
    return numpy_helper.from_array(np.arange(3, dtype=np.float32), "t")


def _sparse_tensor(name: str = "s") -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, -2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [1, 7]), [6, 6])


def _graph() -> onnx.GraphProto:
    return onnx.parser.parse_graph("inner () => (float[1] z) { z = Constant <value_floats = [1.0]> () }")


ATTRIBUTES: dict[str, Spoil] = {
    "ints": one(AttributeProto.INTS),
    "floats": one(AttributeProto.FLOATS),
    "strings": one(AttributeProto.STRINGS),
    "bytes": one(AttributeProto.STRING, s=b"\xff\xfe"),
    "bytes in a list": one(AttributeProto.STRINGS, strings=[b"a", b"\xff"]),
    "type": one(AttributeProto.TYPE_PROTO, tp=helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
    "types": one(
        AttributeProto.TYPE_PROTOS, type_protos=[helper.make_tensor_type_proto(TensorProto.FLOAT, [2])]
    ),
    "sparse tensor": one(AttributeProto.SPARSE_TENSOR, sparse_tensor=_sparse_tensor()),
    "sparse tensors": one(AttributeProto.SPARSE_TENSORS, sparse_tensors=[_sparse_tensor()]),
    "tensors": one(AttributeProto.TENSORS, tensors=[_tensor(), _tensor()]),
    "graphs": one(AttributeProto.GRAPHS, graphs=[_graph(), _graph()]),
    "a graph beside": custom(
        first=AttributeProto(name="odd", type=AttributeProto.INTS),
        second=AttributeProto(name="body", type=AttributeProto.GRAPH, g=_graph()),
    ),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_a_node_with_such_an_attribute_is_the_same_behind_a_quantized_layer(kind: str) -> None:
    model = net(ATTRIBUTES[kind])
    before = special(model.proto).SerializeToString(deterministic=True)
    for recipe in (Quantize(activations="float"), Simplify() | Quantize(weights="gse4", activations="float")):
        result = recipe(model, Context(check=False)).model
        assert find_layers(result) == []
        after = onnx.NodeProto.FromString(special(result.proto).SerializeToString())
        for attribute in after.attribute:
            for node in attribute.g.node:  # nodes without a name get one
                node.ClearField("name")
        assert after.SerializeToString(deterministic=True) == before
    assert special(model.proto).SerializeToString(deterministic=True) == before


def test_graphs_in_a_list_that_read_values_around_them_are_refused_by_name() -> None:
    graph = onnx.parser.parse_graph("inner () => (float[N,6] z) { z = Identity (h) }")
    model = net(one(AttributeProto.GRAPHS, graphs=[graph]))
    for item in (Simplify(), Quantize(activations="float")):
        with pytest.raises(GraphError, match=rf"net.onnx: pass '{item.name}' .*'special'.*reads? 'h'"):
            item(model)


def test_overloads_and_device_configurations() -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        node = special(proto)
        node.op_type, node.domain, node.overload = "Pass", "local", "second"
        node.device_configurations.add(configuration_id="one")
        for overload, op in (("first", "Neg"), ("second", "Relu")):
            body = [helper.make_node(op, ["a"], ["b"])]
            held = helper.make_function("local", "Pass", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
            held.overload = overload
            proto.functions.append(held)

    model = net(spoil)
    result = Quantize(activations="float")(model, Context(check=False)).model
    assert special(result.proto) == special(model.proto)
    assert [held.overload for held in result.proto.functions] == ["first", "second"]


def run(model: Model) -> list[Any]:
    options = ort.SessionOptions()
    # Else it computes with activations in 8 bits.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    return list(session.run(None, {"x": x}))


RUNNABLE = {
    "sparse weight": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,6] x) => (float[N,6] y) {
          h = MatMul (x, w)  y = MatMul (h, s) }""",
    "empty shape": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2,6] x) => (float[2,6] h, float z) {
          h = MatMul (x, w)  r = ReduceSum <keepdims = 1> (h)
          shape = Constant <value_ints = [1]> ()  z = Reshape (r, shape) }""",
    "optional": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,6] x) => (float[N,6] y, bool has) {
          h = MatMul (x, w)  o = Optional (h)  has = OptionalHasElement (o)  y = OptionalGetElement (o) }""",
    "map": """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        net (float[N,6] x) => (float[N,6] h, seq(map(int64, float)) z) {
          h = MatMul (x, w)  z = ai.onnx.ml.ZipMap <classlabels_int64s = [0,1,2,3,4,5]> (h) }""",
    "sequence in a loop": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2,6] x) => (float[2,6] y) <int64 three = {3}> {
          h = MatMul (x, w)  empty = SequenceEmpty ()
          all = Loop (three, , empty) <body = body (int64 i, bool go, seq(float[2,6]) s)
            => (bool on, seq(float[2,6]) t) { on = Identity (go)  t = SequenceInsert (s, h) }>
          y = SequenceAt (all, three_less)
        }""",
}


@pytest.mark.parametrize("kind", RUNNABLE)
def test_such_models_run_quantized(kind: str) -> None:
    proto = onnx.parser.parse_model(RUNNABLE[kind])
    weights = numpy_helper.from_array(np.eye(6, dtype=np.float32) * 127, "w")
    proto.graph.initializer.append(weights)  # int8 holds it exactly
    if kind == "sparse weight":
        proto.graph.sparse_initializer.append(_sparse_tensor())
    if kind == "empty shape":
        del next(node for node in proto.graph.node if node.op_type == "Constant").attribute[0].ints[:]
    if kind == "sequence in a loop":
        proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "three_less"))
    model = Model(proto, kind)
    if kind != "sparse weight":  # onnx's checker knows no shape of it
        check(model)
    wanted = run(model)
    for recipe in (Quantize(activations="float"), Simplify() | Quantize(activations="float")):
        result = recipe(model).model
        assert [value.type for value in result.proto.graph.output] == [v.type for v in proto.graph.output]
        assert [node.op_type for node in result.proto.graph.node].count("DequantizeLinear") == 1
        assert len(result.proto.graph.sparse_initializer) == len(proto.graph.sparse_initializer)
        for a, b in zip(wanted, run(result), strict=True):
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)
            else:
                assert a == b


def test_a_sparse_initializer_that_is_an_input_stays_one() -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        proto.graph.sparse_initializer.append(_sparse_tensor())
        proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [6, 6]))
        special(proto).op_type = "MatMul"
        special(proto).input.append("s")

    result = Quantize(activations="float")(net(spoil), Context(check=False)).model
    assert [value.name for value in result.proto.graph.input] == ["x", "s"]
    assert result.proto.graph.sparse_initializer[0] == _sparse_tensor()


def test_values_of_other_types_keep_their_declarations() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 6]))

    def spoil(proto: onnx.ModelProto) -> None:
        special(proto).op_type = "OptionalGetElement"
        special(proto).input[0] = "o"
        proto.graph.node.insert(1, helper.make_node("Optional", ["h"], ["o"], "optional"))
        proto.graph.input.append(helper.make_value_info("given", kind, "may be left out"))
        proto.graph.value_info.append(helper.make_value_info("o", kind))

    model = net(spoil)
    proto = Quantize(activations="float")(model, Context(check=False)).model.proto
    assert proto.graph.input[1] == model.proto.graph.input[1]
    assert [value for value in proto.graph.value_info if value.name == "o"] == [
        model.proto.graph.value_info[0]
    ]


@pytest.mark.parametrize(("updated", "kept"), [("other", True), ("w", False)])
def test_training_information_stays_while_what_it_updates_does(updated: str, kept: bool) -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "other"))
        special(proto).op_type = "Add"
        special(proto).input.append("other")
        info = proto.training_info.add()
        info.algorithm.name = "step"
        info.algorithm.node.append(helper.make_node("Neg", [updated], ["new"]))
        info.algorithm.output.append(helper.make_tensor_value_info("new", TensorProto.FLOAT, None))
        info.update_binding.add(key=updated, value="new")

    model, context = net(spoil), Context()
    result = Quantize(activations="float")(model, context).model
    assert list(result.proto.training_info) == (list(model.proto.training_info) if kept else [])
    told = [note for note in context.notes if "training information, which updates 'w'" in note.reason]
    assert [note.kind for note in told] == [] if kept else ["info"]


def test_nothing_is_lost_without_an_edit() -> None:
    for spoil in ATTRIBUTES.values():
        model = net(spoil)
        proto = export_graph(import_graph(model), model).proto
        assert len(special(proto).attribute) == len(special(model.proto).attribute)
