"""Opset upgrades: equal values in ONNX Runtime, nothing lost on the way, refusals by name."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import defs

from benchmarks.opset_cases import hand_made
from benchmarks.opset_sweep import equal, run, sweep
from passes.core.base import Context
from passes.core.errors import UnsupportedModelError
from passes.graph.boundary import export_graph, import_graph
from passes.graph.model import Model, check
from passes.inline_functions import InlineFunctions
from passes.opset import upgrade
from passes.opset.adapters import ADAPTERS
from passes.opset.runtime import newest_runtime_opset

NEWEST = newest_runtime_opset()


def parsed(body: str, opset: int, ir: int = 8, more: str = "") -> Model:
    return Model(
        onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{more}]>\n{body}'), "net.onnx"
    )


def raised(model: Model, opset: int) -> Model:
    result = upgrade(model, opset, "the test", Context())
    assert result.opset() == opset
    check(result)
    return result


def test_one_op_models_keep_their_values() -> None:
    """A part of benchmarks/opset_sweep.py: every operator, and each twelfth of the many modes and ratios."""
    cases = list(hand_made())
    few = [
        case for case in cases if case.op not in ("Resize", "Upsample", "Softmax", "LogSoftmax", "Hardmax")
    ]
    many = [case for case in cases if case.op in ("Resize", "Upsample", "Softmax", "LogSoftmax", "Hardmax")]
    tallies, models = sweep(iter([*few[::4], *many[::12]]), (14, NEWEST))
    assert models > 150
    assert not [line for tally in tallies.values() for line in tally.wrong]
    assert {line.partition(" ")[0] for tally in tallies.values() for line in tally.refused} <= {
        "BatchNormalization-7",  # spatial=0
        "RoiAlign-16",  # ONNX Runtime has no kernel from opset 22 on
    }


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("ratios", [(2.0, 2.0), (2.6, 0.6), (0.5, 0.7), (3.0, 1.0)])
def test_ratios_that_are_fed_keep_their_values(mode: str, ratios: tuple[float, float]) -> None:
    text = f'g (float[1,2,7,9] x, float[4] s) => (float[1,2,A,B] y) {{ y = Resize <mode = "{mode}"> (x, s) }}'
    model, x = parsed(text, 10), np.random.default_rng(0).standard_normal((1, 2, 7, 9)).astype(np.float32)
    feed = {"x": x, "s": np.array([1, 1, *ratios], np.float32)}
    for opset in (11, 13, NEWEST):
        assert equal(run(model.proto, feed), run(raised(model, opset).proto, feed))


def test_the_mask_of_dropout_stays_false() -> None:
    model = parsed("g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout (x) }", 10)
    feed = {"x": np.ones(2, np.float32)}
    assert equal(run(raised(model, NEWEST).proto, feed), [feed["x"], np.zeros(2, bool)])


def _takes_away(older: defs.OpSchema, newer: defs.OpSchema) -> bool:
    """Whether a node that is valid under the older schema may be invalid or another under the newer."""
    defaults = {
        name: (schema.attributes[name].default_value if name in schema.attributes else None)
        for schema in (older, newer)
        for name in older.attributes
    }
    before = {name: attribute.default_value for name, attribute in older.attributes.items()}
    return (
        newer.deprecated
        or bool(older.attributes.keys() - newer.attributes.keys())
        or any(defaults[name] != before[name] for name in before)
        or any(a.required for name, a in newer.attributes.items() if name not in older.attributes)
        or older.min_input < newer.min_input
        or older.max_input > newer.max_input
        or older.max_output > newer.max_output
    )


def test_every_change_that_takes_something_away_has_an_adapter() -> None:
    histories: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            histories.setdefault(schema.name, []).append(schema)
    missing = []
    for name, schemas in histories.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for older, newer in pairwise(schemas):
            key = name, newer.since_version
            if 7 < newer.since_version <= 28 and _takes_away(older, newer) and key not in ADAPTERS:
                missing.append(key)
    assert missing == []


BRANCHES = """g (bool c, float[N,3] x) => (float[N,3] y) <float[3] k = {1, 2, 3}, float[N,3] d> {
    [add] d = Add (x, k)
    [branch] y = If (c) <then_branch = t () => (float[N,3] o) <float[N,3] q> { [neg] q = Neg (d)
        [sum] r = ReduceSum <axes = [1]> (q) [mul] o = Mul (q, r) },
    else_branch = e () => (float[N,3] o) <float[3] z = {3, 4, 5}, float[N,3] q> {
        [max] q = Softmax <axis = 0> (d) [times] o = Mul (q, z) }> }"""


def _decorate(graph: onnx.GraphProto) -> None:
    """Write a different text into everything that may have a doc string or metadata."""
    words = iter(f"{graph.name}{index}" for index in range(999))
    things = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node, graph)
    for thing in things:
        thing.doc_string = next(words)
        thing.metadata_props.add(key=next(words), value=next(words))
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.type.denotation = "IMAGE"
        for dim in value.type.tensor_type.shape.dim:
            dim.denotation = "DATA_BATCH"
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = next(words)
            if attribute.type == onnx.AttributeProto.GRAPH:
                _decorate(attribute.g)


def _said(graph: onnx.GraphProto) -> dict[str, str]:
    """What `_decorate` wrote, by the thing that carries it."""
    words = {f"{graph.name}:": f"{graph.doc_string} {list(graph.metadata_props)}"}
    for value in (*graph.input, *graph.output, *graph.value_info):
        words[f"{graph.name}:{value.name}"] = str(value)
    for tensor in graph.initializer:
        words[f"{graph.name}:{tensor.name}"] = str(tensor)
    for node in graph.node:
        key = f"{graph.name}:{node.op_type} {node.output[0]}"
        if node.doc_string:
            words[key] = f"{node.name} {node.doc_string} {list(node.metadata_props)}"
        for attribute in node.attribute:
            if attribute.doc_string:
                words[f"{key}.{attribute.name}"] = attribute.doc_string
            if attribute.type == onnx.AttributeProto.GRAPH:
                words |= _said(attribute.g)
    return words


def test_an_upgrade_and_an_edit_lose_no_word_and_no_name() -> None:
    model = parsed(BRANCHES, 12, ir=10)
    _decorate(model.proto.graph)
    model.proto.metadata_props.add(key="labels", value="a,b")
    before = _said(model.proto.graph)
    upgraded = raised(model, 21)
    assert list(upgraded.proto.metadata_props) == list(model.proto.metadata_props)
    for proto in (upgraded.proto, export_graph(import_graph(upgraded), upgraded).proto):
        after = _said(proto.graph)
        moved = {
            "t:ReduceSum r.axes",
            "e:Softmax q",
            "e:Softmax q.axis",
        }  # an input now; the output is a Reshape's
        assert {key: after.get(key) for key in before if key not in moved} == {
            key: text for key, text in before.items() if key not in moved
        }
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
        assert equal(run(model.proto, feed), run(upgraded.proto, feed))


def test_names_repeated_in_branches_stay_apart_from_new_ones() -> None:
    text = """g (bool c, float[2,3] x) => (float[2,3] y) { y = If (c) <
        then_branch = t () => (float[2,3] o) { o = Clip <min = 0.0> (x) },
        else_branch = e () => (float[2,3] o) { o = Clip <max = 0.5> (x) }> }"""
    model = parsed(text, 10)
    upgraded = raised(model, 13)
    branches = [attribute.g for attribute in upgraded.proto.graph.node[0].attribute]
    assert [graph.output[0].name for graph in branches] == ["o", "o"]
    inner = [name for graph in branches for node in graph.node for name in node.output if name != "o"]
    assert len(set(inner)) == len(inner) == 4
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)}
        assert equal(run(model.proto, feed), run(upgraded.proto, feed))


FUNCTION = """g (float[N,4] x) => (float[N,4] y) {{ t = local.half (x) y = Softmax (t) }}
    <domain: "local", opset_import: ["" : {opset}]> half (a) => (b) {{ {body} }}"""


@pytest.mark.parametrize(
    ("body", "opset", "kept"),
    [
        ("b = Add (a, a)", 12, True),
        ("b = Add (a, a)", 11, True),
        ("s = ReduceSum <axes = [1]> (a) b = Add (a, s)", 12, True),
        ("b = Clip <min = 0.0> (a)", 10, False),  # a bound needs the type, which only the caller knows
    ],
)
def test_functions_are_converted_or_inlined(body: str, opset: int, kept: bool) -> None:
    model = parsed(FUNCTION.format(opset=opset, body=body), opset if not kept else 12, more=', "local" : 1')
    upgraded = raised(model.with_metadata(policy="{}"), 21)
    assert bool(upgraded.proto.functions) == kept
    assert all(function.opset_import[0].version == 21 for function in upgraded.proto.functions)
    assert upgraded.metadata == {"onnxq.policy": "{}"}
    feed = {"x": np.asarray([[1, -2, 3, -4]], np.float32)}
    assert equal(run(model.proto, feed), run(upgraded.proto, feed))


def test_a_function_of_a_newer_opset_takes_its_model_along() -> None:
    model = parsed(FUNCTION.format(opset=15, body="b = Add (a, a)"), 11, more=', "local" : 1')
    upgraded = upgrade(model, 13, "the test", Context())
    assert upgraded.opset() == upgraded.proto.functions[0].opset_import[0].version == 15
    feed = {"x": np.asarray([[1, -2, 3, -4]], np.float32)}
    assert equal(run(model.proto, feed), run(upgraded.proto, feed))


@pytest.mark.parametrize(("own", "opset"), [(10, 12), (12, 10)])
def test_a_function_of_another_opset_is_inlined_with_its_values(own: int, opset: int) -> None:
    """onnx's inliner would convert Resize-10 by its own adapter, which changes its values.

    ONNX Runtime reads such a function at the model's opset, so its own values come from another model.
    """
    text = f"""g (float[1,2,5,5] x) => (float[1,2,N,M] y) <float[2,2,1,1] w = {{1, 2, 3, 4}}> {{
        y = local.block (x, w) }}
    <domain: "local", opset_import: ["" : {own}]> block (a, k) => (b) {{
        c = Conv (a, k) s = Constant <value = float[4] {{1, 1, 1.6, 2.4}}> () b = {{body}} }}"""
    body = 'Resize <mode = "linear"> (c, s)' if own == 10 else "Mul (c, c)"
    alike, model = (parsed(text.replace("{body}", body), each, more=', "local" : 1') for each in (own, opset))
    result = InlineFunctions()(model, Context())
    assert result.modified
    assert not result.model.proto.functions
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)}
    assert equal(run(alike.proto, feed), run(result.model.proto, feed))


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (
            """g (float[2,3] x) => (float[2,3] y) <float[3] k = {1, 2, 3}>
            { [norm] y = BatchNormalization <spatial = 0> (x, k, k, k, k) }""",
            8,
            r"node 'norm' \(BatchNormalization\): spatial=0",
        ),
        (
            "g (float[2] x) => (float[2] y) { [odd] y = Swirl (x) }",
            11,
            r"node 'odd' \(Swirl\): ONNX has no such",
        ),
    ],
)
def test_what_has_no_form_is_refused_by_name(text: str, opset: int, reason: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"net\.onnx: the test needs opset 14.*{reason}.*export it again"
    ):
        upgrade(parsed(text, opset), 14, "the test", Context())


def test_an_opset_that_onnxruntime_has_not_is_refused() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu (x) }", 13)
    with pytest.raises(UnsupportedModelError, match=r"needs opset 999.*up to opset \d+.*newer onnxruntime"):
        upgrade(model, 999, "the test", Context())


def test_inputs_that_were_constants_stay_constants() -> None:
    """Below IR 4 nobody could set them, and ONNX Runtime folds and fuses them."""
    model = parsed(
        "g (float[2] k, float[2] x) => (float[2] y) <float[2] k = {1, 2}> { y = Add (x, k) }", 8, ir=3
    )
    upgraded = raised(model, 13)
    assert upgraded.proto.ir_version > 3
    assert [value.name for value in upgraded.proto.graph.input] == ["x"]
