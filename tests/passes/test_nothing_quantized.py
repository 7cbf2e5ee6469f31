"""A pass that was asked for and cannot work raises; what keeps layers from being quantized is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.core.base import Context, Courtesy, GraphPass, Pass, format_pass
from passes.core.errors import GraphError, UnsupportedModelError, UserError
from passes.core.recipe import parse_recipe
from passes.fold_batchnorm import FoldBatchNorm
from passes.graph.function_layers import functions_with_layers
from passes.graph.layers import find_layers
from passes.graph.model import Model, check
from passes.inline_functions import InlineFunctions
from passes.placement.unquantizable import refuse_unchanged
from passes.policy import Policy, Scheme
from passes.preparation import preparation
from passes.quantize import Quantize
from passes.simplify import Simplify
from passes.smooth import Smooth

FLOAT = TensorProto.FLOAT
VALUE = helper.make_tensor_value_info
WEIGHTS = Quantize(activations="float")


def weight(name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> onnx.TensorProto:
    array = np.random.default_rng(len(name)).standard_normal(shape)
    return numpy_helper.from_array(array.astype(dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    held: Sequence[onnx.TensorProto],
    kind: int = FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
    out: int | None = None,
) -> Model:
    graph = helper.make_graph(
        nodes, "g", [VALUE("x", kind, ["N", 6])], [VALUE("y", kind if out is None else out, ["N", 6])], held
    )
    imports = [helper.make_opsetid(domain, 1) for domain in ("pkg", "com.microsoft")]
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *imports],
        functions=functions,
        ir_version=8,
    )
    return Model(proto, "m.onnx")


def matmul(read: str = "x", held: str = "w", made: str = "y", name: str = "m") -> onnx.NodeProto:
    return helper.make_node("MatMul", [read, held], [made], name)


def plain() -> Model:
    return model([matmul()], [weight("w", 6, 6)])


def bfloat(name: str) -> onnx.TensorProto:
    return TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=[6, 6], raw_data=bytes(72))


INTEGER = model(
    [helper.make_node("MatMulInteger", ["x", "w"], ["y"], "m")],
    [weight("w", 6, 6, dtype=np.int8)],
    TensorProto.UINT8,
    out=TensorProto.INT32,
)
BLOCKS = model(
    [helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], "m", domain="com.microsoft", K=6, N=6, bits=4)],
    [weight("w", 6, 1, 16, dtype=np.uint8), weight("s", 6)],
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (INTEGER, "is already quantized: it computes with 1 MatMulInteger; give the float model"),
        (BLOCKS, "is already quantized: it computes with 1 MatMulNBits; give the float model"),
        (
            model([matmul()], [bfloat("w")], TensorProto.BFLOAT16, opset=22),
            "layer 'm' has weights in bfloat16",
        ),
        (model([matmul()], [weight("w", 6, 6, dtype=np.float64)], TensorProto.DOUBLE), "weights are float64"),
        (model([matmul(held="x")], []), "has no quantizable layer"),
        (model([matmul()], [weight("w", 6, 0)]), r"has not a single weight \(shape \[6, 0\]\)"),
    ],
)
def test_each_reason_has_its_sentence(given: Model, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"m.onnx: .*{words}"):
        WEIGHTS(given)


def test_a_model_that_this_project_quantized_is_refused_but_for_the_same_pass() -> None:
    done = WEIGHTS(plain()).model
    assert not WEIGHTS(done).modified
    for other in (
        Quantize(weights="int4", activations="float"),
        Quantize(weights="gse6", activations="float"),
    ):
        with pytest.raises(
            UnsupportedModelError, match="already quantized: its weights are codes in layer 'm'"
        ):
            other(done)
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        Quantize.of(Policy.uniform(["m"], Scheme.parse("int4")))(done)
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        refuse_unchanged(done, WEIGHTS(done).model)
    refuse_unchanged(plain(), done)


def test_the_users_own_wish_is_no_error() -> None:
    for item in (Quantize(activations="float", exclude=("m",)), Quantize.of(Policy.uniform(["m"], Scheme()))):
        result = item(plain())
        assert not result.modified
        assert [note.reason for note in result.notes] == ["every layer is float in the policy"]


def test_layers_beside_those_of_another_kind_are_quantized_and_the_others_told() -> None:
    nodes = [
        matmul(made="h", name="one"),
        helper.make_node("Cast", ["h"], ["b"], "down", to=TensorProto.BFLOAT16),
        matmul("b", "v", "c", "two"),
        helper.make_node("Cast", ["c"], ["y"], "up", to=FLOAT),
    ]
    result = WEIGHTS(model(nodes, [weight("w", 6, 6), bfloat("v")], opset=22))
    assert [note.reason.partition(",")[0] for note in result.notes] == ["layer 'two' has weights in bfloat16"]
    assert Policy.from_json(json.loads(result.model.metadata["onnxq.policy"])).quantized == ["one"]


@dataclass(frozen=True)
class _Stubborn(GraphPass):
    """Finds fault with every graph."""

    name: ClassVar[str] = "stubborn"

    def run(self, graph: gs.Graph, context: Context) -> bool:
        raise GraphError("graph 'g' has a cycle; export the model again")


def test_a_pass_that_was_asked_for_raises_and_a_courtesy_goes_on() -> None:
    with pytest.raises(
        GraphError, match=r"^m.onnx: pass 'stubborn' cannot work on it: graph 'g' has a cycle"
    ):
        (_Stubborn() | WEIGHTS)(plain())
    result = (Courtesy(_Stubborn()) | WEIGHTS)(plain())
    assert result.modified
    assert [(note.kind, "has a cycle" in note.reason) for note in result.notes] == [("skipped", True)]
    assert format_pass(preparation()) == "inline_functions | simplify | fold_batchnorm"
    assert parse_recipe(format_pass(preparation())).members[1] == Simplify()


@pytest.mark.parametrize(
    "item",
    [Simplify(), FoldBatchNorm(), Smooth(), parse_recipe("equalize"), parse_recipe("simplify | quantize")],
)
def test_graphs_that_cannot_be_edited_are_refused_by_every_pass(item: Pass) -> None:
    given = model(
        [matmul(made="h"), helper.make_node("F", ["h"], ["y"], "f", domain="pkg")], [weight("w", 6, 6)]
    )
    graph = onnx.parser.parse_graph("inner () => (float[N,6] z) { z = Identity (h) }")
    given.proto.graph.node[1].attribute.add(name="all", type=onnx.AttributeProto.GRAPHS, graphs=[graph])
    with pytest.raises(UserError, match=r"m.onnx: pass '\w+' cannot work on it: node 'f'"):
        item(given, Context(check=False))


def linear(
    name: str, reads: Sequence[str] = ("a",), opset: int = 17, domain: str = "pkg"
) -> onnx.FunctionProto:
    """A function with a layer whose weight is in its body, or handed to it."""
    body = [helper.make_node("Constant", [], ["k"], value=weight("k", 6, 6))] if len(reads) == 1 else []
    body.append(helper.make_node("MatMul", ["a", "k"], ["o"], "mm"))
    return helper.make_function(domain, name, list(reads), ["o"], body, [helper.make_opsetid("", opset)])


def call(op: str, *read: str, made: str = "y", overload: str = "") -> onnx.NodeProto:
    node = helper.make_node(op, list(read), [made], f"call_{made}", domain="pkg")
    node.overload = overload
    return node


def outer() -> onnx.FunctionProto:
    body = [
        helper.make_node("Linear", ["a"], ["b"], "inner", domain="pkg"),
        helper.make_node("Relu", ["b"], ["o"]),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)]
    return helper.make_function("pkg", "Outer", ["a"], ["o"], body, imports)


def run(given: Model) -> Any:
    session = ort.InferenceSession(given.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)})[0]


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        (model([call("Linear", "x")], [], functions=[linear("Linear")]), 1),
        (model([call("Linear", "x", made="h"), call("Linear", "h")], [], functions=[linear("Linear")]), 2),
        (model([call("Linear", "x", "w")], [weight("w", 6, 6)], functions=[linear("Linear", ("a", "k"))]), 1),
        (model([call("Outer", "x")], [], functions=[linear("Linear"), outer()]), 1),
        (model([call("Linear", "x")], [], functions=[linear("Linear", opset=15)]), 1),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_layers_in_functions_are_quantized(given: Model, layers: int, first: bool) -> None:
    inlined = InlineFunctions()(given)
    np.testing.assert_array_equal(run(inlined.model), run(given))
    assert len(find_layers(inlined.model)) == layers
    assert not InlineFunctions()(inlined.model).modified
    result = (preparation() | WEIGHTS if first else WEIGHTS)(given)
    check(result.model)
    assert [node.op_type for node in result.model.proto.graph.node].count("DequantizeLinear") == layers
    assert not result.model.proto.functions
    assert any("functions that hold layers were inlined: pkg::" in note.reason for note in result.notes)
    assert len(given.proto.functions) >= 1


def test_only_functions_that_hold_layers_are_inlined() -> None:
    relu = helper.make_function(
        "pkg", "Act", ["a"], ["o"], [helper.make_node("Relu", ["a"], ["o"])], [helper.make_opsetid("", 17)]
    )
    given = model([call("Linear", "x", made="h"), call("Act", "h")], [], functions=[linear("Linear"), relu])
    assert functions_with_layers(given.proto) == ["pkg::Linear"]
    result = WEIGHTS(given).model
    assert [held.name for held in result.proto.functions] == ["Act"]
    assert "Act" in [node.op_type for node in result.proto.graph.node]
    # Handed an activation for a weight, the function holds no layer.
    dynamic = model([call("Linear", "x", "x")], [], functions=[linear("Linear", ("a", "k"))])
    assert functions_with_layers(dynamic.proto) == []
    assert not InlineFunctions()(dynamic).modified


def test_functions_of_other_overloads_stay_what_they_are() -> None:
    first, second = linear("Linear"), linear("Linear")
    first.overload, second.overload = "a", "b"
    second.node[1].op_type = "Add"
    given = model(
        [call("Linear", "x", made="h", overload="a"), call("Linear", "h", overload="b")],
        [],
        functions=[first, second],
    )
    given.proto.ir_version = 10
    result = WEIGHTS(given).model
    assert [held.overload for held in result.proto.functions] == ["b"]
    assert result.proto.graph.node[-1].overload == "b"


def test_an_empty_weight_is_not_a_layer_and_is_told() -> None:
    nodes = [
        matmul(name="full"),
        helper.make_node("MatMul", ["x", "none"], ["z"], "empty"),
        helper.make_node("Conv", ["c", "k"], ["d"], "conv"),
    ]
    given = model(nodes, [weight("w", 6, 6), weight("none", 6, 0), weight("k", 0, 2, 1, 1)])
    given.proto.graph.input.append(VALUE("c", FLOAT, ["N", 2, 4, 4]))
    given.proto.graph.output.extend([VALUE("z", FLOAT, ["N", 0]), VALUE("d", FLOAT, None)])
    assert [layer.name for layer in find_layers(given)] == ["full"]
    for scheme in ("int8", "int4:block32", "gse6", "tcq3", "uint8:asym"):
        for item in (Quantize(weights=scheme, activations="float"), preparation() | Smooth() | WEIGHTS):
            result = item(given)
            told = [note.reason for note in result.notes if "has not a single weight" in note.reason]
            assert len(told) == 2
            assert any("'empty'" in reason for reason in told)
            assert any("'conv'" in reason for reason in told)


@pytest.mark.parametrize("item", [WEIGHTS, preparation() | WEIGHTS, Quantize(activations="uint8:dynamic")])
def test_an_input_that_is_taken_away_is_always_told(item: Pass) -> None:
    given = plain()
    given.proto.graph.input.append(VALUE("w", FLOAT, [6, 6]))
    result = item(given)
    assert [value.name for value in result.model.proto.graph.input] == ["x"]
    told = [
        note for note in result.notes if note.reason.startswith("input 'w': the default is a constant now")
    ]
    assert [(note.kind, note.node) for note in told] == [("info", "")]
