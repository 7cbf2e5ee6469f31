"""Models are checked when they are loaded: refused, or mended where ONNX Runtime is lenient.

Most faults are one change of a small model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from passes.core.errors import InvalidModelError
from passes.core.recipe import parse_recipe
from passes.golden.order import Reads
from passes.golden.text import canonical_text
from passes.graph.admission import ModelWarning
from passes.graph.model import Model, check, load

FLOAT = onnx.TensorProto.FLOAT
Change = Callable[[onnx.ModelProto], object]


def relus() -> onnx.ModelProto:
    """x -> Relu -> a -> Relu -> b; b + w -> y."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Add", ["b", "w"], ["y"], "add"),
    ]
    weight = numpy_helper.from_array(np.arange(8, dtype=np.float32), "w")
    shape: list[str | int] = ["N", 8]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def reverse(proto: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(proto.graph.node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def two_faults(proto: onnx.ModelProto) -> None:
    reverse(proto)
    proto.graph.ClearField("name")


def output_dim(proto: onnx.ModelProto, size: int) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = size


def alias(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"


def value_info(proto: onnx.ModelProto, name: str, shape: Any) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, shape))


LENIENT: dict[str, tuple[Change, str]] = {
    "unsorted": (reverse, "not in order"),
    "no graph name": (lambda m: m.graph.ClearField("name"), "no name"),
    "no IR version": (lambda m: setattr(m, "ir_version", 0), "IR version"),
    "old IR": (lambda m: setattr(m, "ir_version", 3), "IR version"),
    "initializer twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "more than once"),
    "wrong inner type": (lambda m: value_info(m, "a", ["N", 9]), "inner tensors"),
    "wrong output shape": (lambda m: output_dim(m, 9), "shapes of its outputs"),
    "two faults": (two_faults, "not in order.*no name|no name.*not in order"),
}
SILENT: dict[str, Change] = {
    "alias": alias,
    "output without shape": lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
    "output without type": lambda m: m.graph.output[0].ClearField("type"),
    "output repeated in value_info": lambda m: value_info(m, "y", None),
    "batch of -1": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -1),
    "opset twice": lambda m: m.opset_import.append(m.opset_import[0]),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "b"), "'first'.*cycle"),
    "own result": (lambda m: m.graph.node[2].input.__setitem__(1, "y"), "'add'.*cycle"),
    "attribute": (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("foo", 3)),
        "node 'second'",
    ),
    "operator": (lambda m: setattr(m.graph.node[1], "op_type", "Nope"), "node 'second' .Nope"),
    "reads nothing": (lambda m: m.graph.node[1].input.__setitem__(0, "q"), "'q'"),
    "no such output": (lambda m: setattr(m.graph.output[0], "name", "z"), "'z'"),
    "short data": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"),
        "'w' has 3 bytes.*needs 32",
    ),
    "long data": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1" * 99), "'w' has 99 bytes"),
    "negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -8), r"'w' has the shape \[-8\]"),
    "unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "unknown type 77"),
    "two opsets": (lambda m: m.opset_import.add(version=11), "twice, at versions 17 and 11"),
    "no IR version": (lambda m: m.ClearField("ir_version"), "ir_version"),
    "IR of the future": (lambda m: setattr(m, "ir_version", 99), "ir_version 99"),
    "other initializer": (
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), "w")),
        "'w' more than once, with different values",
    ),
}


def saved(change: Change, folder: Path) -> Path:
    proto = relus()
    change(proto)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def same_values(path: Path, model: Model) -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)}
    sessions = [ort.InferenceSession(content) for content in (str(path), model.proto.SerializeToString())]
    before, after = (session.run(None, feed)[0] for session in sessions)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("case", LENIENT)
def test_what_only_the_checker_refuses_is_told_and_goes_on(case: str, tmp_path: Path) -> None:
    change, words = LENIENT[case]
    path = saved(change, tmp_path)
    if case != "initializer twice":  # one with other values is refused: which of them counts?
        ort.InferenceSession(str(path))
    with pytest.warns(ModelWarning, match=words):
        model = load(path)
    check(model)
    same_values(path, model)
    folded = parse_recipe("simplify | fold_batchnorm")(model).model
    same_values(path, folded)


@pytest.mark.parametrize("case", SILENT)
def test_what_means_the_same_needs_no_remark(case: str, tmp_path: Path) -> None:
    path = saved(SILENT[case], tmp_path)
    model = load(path)
    same_values(path, model)
    same_values(path, parse_recipe("simplify | fold_batchnorm")(model).model)


@pytest.mark.parametrize("case", REFUSED)
def test_what_both_refuse_is_one_sentence(case: str, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    path = saved(change, tmp_path)
    with pytest.raises(InvalidModelError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", [b"second", b"Relu", b"add"])
def test_names_that_are_not_utf8(old: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(relus().SerializeToString().replace(old, b"\xff" + old[1:]))
    with pytest.raises(InvalidModelError, match="not UTF-8"):
        load(path)


def test_a_dimension_of_0_in_an_input_is_free(tmp_path: Path) -> None:
    path = saved(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 0), tmp_path)
    with pytest.warns(ModelWarning, match="input 'x' declares a dimension of 0"):
        model = load(path)
    assert not model.proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_a_pass_is_not_blamed_for_what_came_in() -> None:
    """Not loaded from a file, so not mended: the output's shape is wrong before and after."""
    proto = relus()
    output_dim(proto, 9)
    proto.graph.node.append(helper.make_node("Identity", ["a"], ["unused"]))
    result = parse_recipe("simplify")(Model(proto))
    assert result.modified
    assert len(result.model.proto.graph.node) == 3


def nested(depth: int) -> onnx.ModelProto:
    """An If in a branch of an If, `depth` times."""
    shape: list[str | int] = ["N", 8]
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["o0"])],
        "b0",
        [],
        [helper.make_tensor_value_info("o0", FLOAT, shape)],
    )
    for level in range(1, depth + 1):
        value = helper.make_tensor_value_info(f"e{level}", FLOAT, shape)
        other = helper.make_graph([helper.make_node("Neg", ["x"], [f"e{level}"])], f"e{level}", [], [value])
        node = helper.make_node("If", ["c"], [f"o{level}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph(
            [node], f"b{level}", [], [helper.make_tensor_value_info(f"o{level}", FLOAT, shape)]
        )
    inner.input.append(helper.make_tensor_value_info("x", FLOAT, shape))
    inner.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_golden_texts_look_at_each_nested_node_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    found = Reads._found

    def counted(self: Reads, node: onnx.NodeProto) -> Any:
        looked.append(1)
        return found(self, node)

    monkeypatch.setattr(Reads, "_found", counted)
    text = canonical_text(Model(nested(20)))
    assert len(looked) == 20 + 20 + 1
    assert len(re.findall(r"= If\(", text)) == 20


def test_a_long_chain_needs_no_deep_stack(tmp_path: Path) -> None:
    nodes = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(3000)]
    inputs = [helper.make_tensor_value_info("t0", FLOAT, ["N", 8])]
    outputs = [helper.make_tensor_value_info("t3000", FLOAT, ["N", 8])]
    graph = helper.make_graph(list(reversed(nodes)), "g", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.warns(ModelWarning, match="not in order"):
        model = load(tmp_path / "m.onnx")
    assert [node.output[0] for node in model.proto.graph.node] == [f"t{i + 1}" for i in range(3000)]
    assert canonical_text(model).count("Tanh(") == 3000
