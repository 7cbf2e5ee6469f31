"""Canonical text depends on structure alone; golden checks say what differs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from passes.fold_batchnorm import FoldBatchNorm
from passes.golden.text import GoldenMismatch, canonical_text, check_golden, diff
from passes.graph.model import Model
from passes.simplify import Simplify

UNARY, BINARY = ("Relu", "Neg", "Exp"), ("Add", "Mul", "Sub")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A random graph of elementwise nodes over one input and some weights, some of it dead."""
    weights = {f"w{i}": np.full(draw(st.sampled_from([1, 4, 12])), i, np.float32) for i in range(3)}
    pools: dict[int, list[str]] = {1: ["x", "w0"]}
    nodes = []
    for index in range(draw(st.integers(1, 14))):
        known = [*pools[1], *weights]
        if draw(st.booleans()):
            nodes.append(
                helper.make_node(draw(st.sampled_from(UNARY)), [draw(st.sampled_from(known))], [f"t{index}"])
            )
        else:
            pair = [draw(st.sampled_from(pools[1])), draw(st.sampled_from(["x", "w0", *pools[1]]))]
            nodes.append(helper.make_node(draw(st.sampled_from(BINARY)), pair, [f"t{index}"]))
        pools[1].append(f"t{index}")
    made = [node.output[0] for node in nodes]
    chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 1])],
        [helper.make_tensor_value_info(f"out{i}", kind, None) for i in range(len(chosen))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    graph.node.extend(helper.make_node("Identity", [name], [f"out{i}"]) for i, name in enumerate(chosen))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def disguised(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph: nodes in another legal order, inner tensors and nodes renamed."""
    generator, copy = random.Random(seed), onnx.ModelProto()
    copy.CopyFrom(model)
    waiting, ready, order = list(copy.graph.node), {"x", *(t.name for t in copy.graph.initializer)}, []
    while waiting:
        node = generator.choice([node for node in waiting if set(node.input) <= ready])
        waiting = [other for other in waiting if other is not node]
        order.append(onnx.NodeProto.FromString(node.SerializeToString()))
        ready |= set(node.output)
    kept = {"x", *(value.name for value in copy.graph.output)}
    every = sorted(ready - kept)
    fresh = dict(zip(every, generator.sample([f"n{i}" for i in range(len(every))], len(every)), strict=True))
    for index, node in enumerate(order):
        node.name = f"node{index}"
        for names in (node.input, node.output):
            names[:] = [fresh.get(name, name) for name in names]
    for tensor in copy.graph.initializer:
        tensor.name = fresh[tensor.name]
    tensors = [onnx.TensorProto.FromString(t.SerializeToString()) for t in copy.graph.initializer]
    generator.shuffle(tensors)
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(order)
    copy.graph.initializer.extend(tensors)
    return copy


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 2**32))
def test_names_and_order_do_not_matter(model: onnx.ModelProto, seed: int) -> None:
    assert canonical_text(Model(disguised(model, seed))) == canonical_text(Model(model))


# (the same graph twice), nodes that no output needs: equal in what they compute, not in what reads them.
DEAD = (
    """a = Add(x, x)  y = Identity(a)  b = Add(x, x)  c = Relu(a)  d = Relu(b)  e = Neg(b)""",
    """b = Add(x, x)  d = Relu(b)  e = Neg(b)  a = Add(x, x)  c = Relu(a)  y = Identity(a)""",
    """y0 = Neg(x)  y = Identity(y0)  a = Add(x, x)  b = Add(x, x)  c = Relu(a)  d = Relu(b)  e = Exp(b)""",
    """y0 = Neg(x)  y = Identity(y0)  b = Add(x, x)  d = Relu(b)  a = Add(x, x)  e = Exp(b)  c = Relu(a)""",
)


@pytest.mark.parametrize("first", [0, 2], ids=["beside a live one", "among themselves"])
def test_dead_nodes_that_compute_the_same(first: int) -> None:
    heading = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y)'
    models = [Model(onnx.parser.parse_model(f"{heading} {{ {DEAD[first + at]} }}")) for at in (0, 1)]
    assert canonical_text(models[0]) == canonical_text(models[1])


TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,2,1,1] w = {1, 2, 3, 4}> {
  a = Conv <group = 1> (x, w)
  y = LeakyRelu <alpha = 0.1> (a)
}"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("alpha = 0.1", "alpha = 0.2"),
        ("{1, 2, 3, 4}", "{1, 2, 3, 5}"),
        ("LeakyRelu", "Elu"),
        ("(a)", "(x)"),
        ('["" : 17]', '["" : 16]'),
        ("float[N,2,3,3] x", "float[2,2,3,3] x"),
        ("g (float[N,2,3,3] x", "g (float[N,2,3,3] z, float[N,2,3,3] x"),
    ],
)
def test_what_matters_shows(old: str, new: str) -> None:
    assert old in TEXT
    before, after = (Model(onnx.parser.parse_model(text)) for text in (TEXT, TEXT.replace(old, new)))
    assert diff(canonical_text(before), canonical_text(after))


@pytest.mark.parametrize(("factor", "same"), [(1 + 2e-7, True), (1 + 1e-4, False)])
def test_digest_ignores_an_ulp_and_nothing_more(factor: float, same: bool) -> None:
    base = np.array([1.23456, -2.5, 0.0, 1e-30, 3e30, np.nan, np.inf, -np.inf, 7.5, -1e-42], np.float32)

    def text(array: np.ndarray) -> str:
        tensor = numpy_helper.from_array(array.astype(np.float32), "w")
        value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [10])
        graph = helper.make_graph([helper.make_node("Relu", ["w"], ["y"])], "g", [], [value], [tensor])
        return canonical_text(Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))

    changed = base.copy()
    changed[:5] = base[:5] * np.float32(factor)
    assert (text(changed) == text(base)) is same


def test_symbols_that_inference_invents_are_hidden() -> None:
    text = canonical_text(Model(onnx.parser.parse_model(TEXT.replace("[N,2,3,3] x", "[N,2,H,W] x"))))
    assert "unk" not in text
    assert "float32[N,2,?,?] = Conv" in text


def test_a_deep_graph_is_no_problem() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5000)]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("t0", "t5000")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert "%Relu4999" in canonical_text(Model(model))


def test_check_golden(tmp_path: Path) -> None:
    model, file = Model(onnx.parser.parse_model(TEXT), "tiny.onnx"), tmp_path / "golden" / "tiny.txt"
    with pytest.raises(GoldenMismatch, match="no such golden file"):
        check_golden(Simplify(), model, file)
    check_golden(Simplify(), model, file, update=True)
    check_golden(Simplify() | FoldBatchNorm(), model, file)
    file.write_text(file.read_text().replace("alpha=0.1", "alpha=0.3"))
    with pytest.raises(GoldenMismatch, match=r"(?s)simplify.*tiny\.onnx.*-.*alpha=0\.3.*\+.*alpha=0\.1"):
        check_golden(Simplify(), model, file)
