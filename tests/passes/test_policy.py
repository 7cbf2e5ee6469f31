"""Policies: schemes as text, JSON and CSV, and each mistake by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.core.errors import PolicyError
from passes.formats.integer import INTEGER_BITS
from passes.graph.layers import Layer
from passes.policy import FLOAT, LayerPolicy, Policy, Scheme, load_policy

INT8 = Scheme.parse("int8")


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    if draw(st.booleans()) and draw(st.booleans()):
        return FLOAT
    granularity = draw(st.sampled_from(["tensor", "channel", "block"]))
    signed = draw(st.booleans())
    return Scheme(
        "int",
        draw(st.sampled_from(INTEGER_BITS)),
        granularity,  # type: ignore[arg-type]
        draw(st.sampled_from([8, 32, 128])) if granularity == "block" else 0,
        signed and draw(st.booleans()),
        signed,
        draw(st.booleans()),
    )


policies = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.builds(LayerPolicy, schemes(), schemes(), st.sampled_from(["none", "input", "output"])),
    max_size=4,
).map(Policy)


@given(schemes())
def test_schemes_round_trip(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme


@given(policies)
def test_policies_round_trip_as_json(policy: Policy) -> None:
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("float", FLOAT),
        ("fp32", FLOAT),
        ("int8", Scheme("int", 8)),
        ("INT4:block32", Scheme("int", 4, "block", 32)),
        ("uint8:tensor:asym", Scheme("int", 8, symmetric=False, signed=False)),
        ("int8:channel", Scheme("int", 8, "channel")),
        ("int8:dynamic", Scheme("int", 8, dynamic=True)),
        ("tcq3", Scheme("tcq", 3, "channel")),
        ("TCQ3:channel", Scheme("tcq", 3, "channel")),
    ],
)
def test_scheme_texts(text: str, scheme: Scheme) -> None:
    assert Scheme.parse(text) == scheme


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("quick", "'quick' is no scheme"),
        ("int9", "2 to 8 or 16 bits, not 9"),
        ("tcq1", "2 to 5 bits, not 1"),
        ("tcq4:tensor", "one scale per channel"),
        ("tcq4:paper", "only GSE"),
        ("int1", "2 to 8 or 16 bits, not 1"),
        ("int8:fast", "'fast' is none of"),
        ("int4:block0", "block size"),
        ("int8:block", "'block' is none of"),
        ("", "is no scheme"),
    ],
)
def test_bad_schemes(text: str, word: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Scheme.parse(text)
    assert word in str(caught.value)


def test_operations() -> None:
    policy = Policy.uniform(["a", "b", "c"], INT8, INT8)
    excluded = policy.exclude(["b"])
    assert excluded.quantized == ["a", "c"]
    assert policy.quantized == ["a", "b", "c"]
    assert policy["unknown"].is_float
    assert excluded.smoothed(["a"], "output")["a"].smooth == "output"
    assert len(policy) == 3
    assert list(policy) == ["a", "b", "c"]


def test_names_are_checked() -> None:
    layer = Layer("a", "Conv", "w", (1, 1, 1, 1), 0, 1, 0)
    Policy.uniform([layer], INT8).check_names([layer])
    with pytest.raises(PolicyError, match=r"1 layer\(s\) that the model lacks, first 'b'"):
        Policy.uniform(["a", "b"], INT8).check_names([layer])


def test_files(tmp_path: Path) -> None:
    policy = Policy.uniform(["a", "b,c"], INT8, Scheme.parse("uint8:asym")).smoothed(["a"], "input")
    (tmp_path / "p.json").write_text(json.dumps(policy.to_json()))
    (tmp_path / "p.csv").write_text(policy.to_csv())
    assert load_policy(tmp_path / "p.json") == policy
    assert load_policy(tmp_path / "p.csv") == policy


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "not JSON"),
        (b"[]", "is no policy"),
        (b'{"layers": []}', "is no policy"),
        (b'{"layers": {"a": 8}}', "layer 'a': expected an object"),
        (b'{"layers": {"a": {"weights": "int99"}}}', "layer 'a': 'int99': an integer scheme has"),
        (b'{"layers": {"a": {"weigths": "int8"}}}', "layer 'a': unknown key 'weigths'"),
        (b'{"layers": {"a": {"smooth": "both"}}}', "layer 'a': smooth is 'both'"),
        (b'{"layers": {"a": {"weights": 8}}}', "layer 'a'"),
        (b"\xff\xfe", "not a text file"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        load_policy(file)
    assert str(file) in str(caught.value)
    assert word in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.json")
