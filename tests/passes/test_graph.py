"""The boundary to graphsurgeon: what goes in comes out, or is refused and left untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.core.base import Context, GraphPass
from passes.graph.boundary import export_graph, import_graph
from passes.graph.editing import add_constant, is_constant, packed_constant, subgraphs, unique_name, values
from passes.graph.model import Model, check
from passes.simplify import Simplify

HEAD = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>\n'


def parsed(body: str, head: str = HEAD) -> Model:
    return Model(onnx.parser.parse_model(head + body), "m")


def through(model: Model) -> onnx.ModelProto:
    """The model after an import and an export that edit nothing."""
    return export_graph(import_graph(model), model).proto


SMALL = "g (float[N,2] x) => (float[N,2] y) <float[2] k = {1, 2}> { a = Add (x, k) y = Relu (a) }"


def test_metadata_and_doc_strings_are_carried() -> None:
    model = parsed(SMALL)
    proto = model.proto
    proto.producer_name, proto.doc_string, proto.domain, proto.model_version = "me", "about", "here", 7
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "the graph"
    proto.graph.metadata_props.add(key="gk", value="gv")
    proto.graph.node[0].doc_string = "an addition"
    proto.graph.node[0].metadata_props.add(key="nk", value="nv")
    proto.graph.input[0].doc_string = "an image"
    result = through(model)
    assert (result.producer_name, result.doc_string, result.domain, result.model_version) == (
        "me",
        "about",
        "here",
        7,
    )
    assert result.metadata_props[0].value == "v"
    assert result.graph.doc_string == "the graph"
    assert result.graph.metadata_props[0].value == "gv"
    assert result.graph.node[0].doc_string == "an addition"
    assert result.graph.node[0].metadata_props[0].value == "nv"
    assert result.graph.input[0] == proto.graph.input[0]
    assert result.ir_version == 10


def test_the_model_is_not_written_into() -> None:
    model = parsed(
        "g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add (x, c) }"
    )
    before = model.proto.SerializeToString(deterministic=True)
    through(model)
    Simplify()(model)
    assert model.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("data_type", [TensorProto.INT4, TensorProto.UINT4])
def test_packed_weights_stay_bit_by_bit(data_type: int) -> None:
    weight = TensorProto(name="w", data_type=data_type, dims=[3], raw_data=b"\x21\x03")
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [weight, numpy_helper.from_array(np.array(0.5, np.float32), "s")],
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    opened = import_graph(model)
    assert values(opened.nodes[0].inputs[0]).astype(np.int8).tolist() == [1, 2, 3]  # reading caches nothing
    result = export_graph(opened, model).proto
    assert result.graph.initializer[0] == weight


def test_packed_constant_packs_the_low_element_first() -> None:
    model = parsed(SMALL)
    graph = import_graph(model)
    four = packed_constant(graph, "k", np.array([1, -1, 3], np.int8), TensorProto.INT4)
    two = packed_constant(graph, "k", np.array([1, 2, 3, 0, 1], np.uint8), TensorProto.UINT2)
    assert [four.name, two.name] == ["k_1", "k_2"]
    assert four._values.tensor.raw_data == b"\xf1\x03"
    assert two._values.tensor.raw_data == bytes([0b00111001, 1])


def test_functions_are_kept() -> None:
    model = parsed(
        "g (float[2] x) => (float[2] y) { a = Identity (x) y = local.twice (a) }\n"
        '<domain: "local", opset_import: ["" : 21]> twice (x) => (y) { y = Add (x, x) }'
    )
    result = Simplify()(model)
    assert result.modified
    assert list(result.model.proto.functions) == list(model.proto.functions)
    check(result.model)


def test_nodes_get_unique_names_over_all_graphs() -> None:
    model = parsed(
        "g (bool c, float[2] x) => (float[2] y) { [n] a = Relu (x) [n] b = Relu (a) d = Relu (b) "
        "y = If (c) <then_branch = t () => (float[2] o) { [n] o = Neg (d) }, "
        "else_branch = e () => (float[2] o) { [n] o = Neg (d) }> }"
    )
    names = [node.name for graph, _ in subgraphs(import_graph(model)) for node in graph.nodes]
    assert names[:4] == ["n", "n_1", "Relu_2", "If_3"]
    assert len(set(names)) == len(names)


def test_subgraphs_do_not_copy_the_weights_around_them() -> None:
    model = parsed(
        "g (bool c, float[2] x) => (float[2] y) <float[2] k = {1, 2}> { b = Add (x, k) "
        "y = If (c) <then_branch = t () => (float[2] o) { o = Add (b, k) }, "
        "else_branch = e () => (float[2] o) <float[2] z = {3, 4}> { o = Mul (b, z) }> }"
    )
    result = through(model)
    branches = {a.name: a.g for a in result.graph.node[1].attribute}
    assert not branches["then_branch"].initializer
    assert [tensor.name for tensor in branches["else_branch"].initializer] == ["z"]
    check(Model(result))


def test_sequences_keep_their_types() -> None:
    model = parsed(
        "g (float[2] x, int64 i) => (seq(float[2]) s, float[2] y) "
        "{ n = Identity (x) s = SequenceConstruct (n, x) y = SequenceAt (s, i) }"
    )
    result = Simplify()(model)
    assert result.modified
    assert list(result.model.proto.graph.output) == list(model.proto.graph.output)
    check(result.model)


def test_initializers_listed_as_inputs_keep_their_place() -> None:
    text = (
        "g (float[2] k, float[N,2] x) => (float[N,2] y) <float[2] k = {1, 2}> "
        "{ a = Identity (x) y = Add (a, k) }"
    )
    model = parsed(text, '<ir_version: 3, opset_import: ["" : 9]>\n')
    result = Simplify()(model)
    assert result.modified
    assert [value.name for value in result.model.proto.graph.input] == ["k", "x"]
    assert result.model.proto.ir_version == 3


def test_opset_edits_do_not_reach_the_source() -> None:
    model = parsed(SMALL)
    graph = import_graph(model)
    graph.import_domains[0].version = 13
    assert model.opset() == 21


def test_names_and_constants() -> None:
    graph = import_graph(parsed(SMALL))
    assert unique_name(graph, "fresh") == "fresh"
    assert unique_name(graph, "fresh") == "fresh_1"
    assert unique_name(graph, "x") == "x_1"
    assert is_constant(graph.nodes[0].inputs[1])
    assert not is_constant(graph.nodes[0].inputs[0])
    assert values(add_constant(graph, "c", np.arange(4)[::2])).tolist() == [0, 2]


@dataclass(frozen=True)
class _Renamed(GraphPass):
    """Gives the graph another output type; for the next test."""

    name: ClassVar[str] = "test_retype"

    def run(self, graph: gs.Graph, context: Context) -> bool:
        output: Any = graph.outputs[0]
        output.shape = [3, 2]
        return True


def test_a_pass_may_change_the_signature_on_purpose() -> None:
    result = _Renamed()(parsed(SMALL))
    assert [dim.dim_value for dim in result.model.proto.graph.output[0].type.tensor_type.shape.dim] == [3, 2]
