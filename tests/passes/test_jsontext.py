"""The reader of JSON from outside: one sentence for whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from passes.core.errors import InvalidModelError, PolicyError, UserError
from passes.graph.jsontext import parse_json, read_json, stored_texts
from passes.graph.model import Model

BAD: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "is not JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    "not UTF-8": (b'{"a": "\xff"}', "not a text file in UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not a text file in UTF-8"),
    "key twice": (b'{"a": 1, "b": 2, "a": 3}', "gives 'a' twice"),
    "NaN": (b"[NaN]", "is not JSON .it holds NaN"),
    "empty": (b"", "is not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_fault_is_a_sentence(case: str, tmp_path: Path) -> None:
    content, words = BAD[case]
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(PolicyError, match=words) as caught:
        read_json(file, "the policy", PolicyError)
    assert str(caught.value).startswith(f"{file}: ")
    with pytest.raises(UserError, match=r"file\.json: is not a report: it "):
        read_json(file, "the report", kind="a report")


@pytest.mark.parametrize("name", ["missing.json", "nul\0.json", "."])
def test_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the policy cannot be read"):
        read_json(f"{tmp_path}/{name}", "the policy")


def test_good_ones() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xa9"]}', "here") == {
        "a": [1, 2.5, None, True, "é"]
    }
    assert parse_json("9" * 300, "here") == int("9" * 300)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": 1}', "[1]", "null", "{", '"text"'])
def test_metadata_that_onnxq_did_not_write(text: str) -> None:
    model = Model(onnx.ModelProto()).with_metadata(smooth=text)
    with pytest.raises(InvalidModelError, match=r"the metadata entry 'onnxq\.smooth'"):
        stored_texts(model, "onnxq.smooth", dict)
