"""The one-call door and what it takes: models and data as a program holds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq as oq


@pytest.fixture
def arrays(tiny_data: Path) -> dict[str, Any]:
    with np.load(tiny_data) as held:
        return {name: held[name] for name in held.files}


def test_a_path_a_model_and_a_proto_give_the_same_file(tiny: Path, tiny_data: Path) -> None:
    forms: list[Any] = [tiny, str(tiny), oq.load(tiny), onnx.load(tiny)]
    made = [oq.quantize(form, tiny_data).model.proto for form in forms]
    assert len({proto.SerializeToString(deterministic=True) for proto in made}) == 1
    assert sum(node.op_type == "DequantizeLinear" for node in made[0].graph.node) > 4


def test_it_is_what_the_command_line_writes(invoke: Any, work: Path) -> None:
    options = ("--data", "data.npz", "--weights", "int4:channel", "--rounding", "gptq", "--exclude", "last")
    assert invoke("quantize", "tiny.onnx", *options, "-o", "cli.onnx").exit_code == 0
    given = {"weights": "int4:channel", "rounding": "gptq", "exclude": ["last"]}
    result = oq.quantize("tiny.onnx", "data.npz", **given)  # type: ignore[arg-type]
    oq.save(result.model, "python.onnx")
    graphs = [onnx.load(name).graph for name in ("cli.onnx", "python.onnx")]
    assert graphs[0] == graphs[1]


def test_data_as_a_program_holds_them(tiny: Path, tiny_data: Path, arrays: dict[str, Any]) -> None:
    x, y = arrays["x"], arrays["y"]

    def generated() -> Iterator[Any]:
        yield from x

    wanted = oq.quantize(tiny, tiny_data).model.proto.graph
    for data in (x, {"x": x}, list(x), [(row, 0) for row in x], generated(), oq.open_dataset(x, tiny)):
        assert oq.quantize(tiny, data).model.proto.graph == wanted
    score = oq.evaluate(tiny, {"x": x, "y": y})
    assert score.values["top1"] == 1.0
    assert score.samples == len(x)


def test_without_data(tiny: Path) -> None:
    small = oq.quantize(tiny, weights="gse4", activations="float")
    assert any(layer["weights"] == "gse4:block32" for layer in oq.describe(small.model, 0)["layers"])
    with pytest.raises(oq.UserError, match="static activation quantization needs calibration data"):
        oq.quantize(tiny)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (7, "the given int: is not data; give an array"),
        (np.zeros((3, 5), np.float32), "a sample has shape 5 but model input 'x' takes 3x8x8"),
        ([], "the given list: it holds no samples"),
        (["a", 1], r"the given list\[0\]: an item is a str; yield an array"),
        ({name: np.zeros((2, 3, 8, 8), np.float32) for name in "ab"}, "the given dict"),
    ],
)
def test_what_is_no_data_is_one_sentence(tiny: Path, data: object, words: str) -> None:
    with pytest.raises(oq.UserError, match=words) as caught:
        oq.quantize(tiny, data)
    assert "\n" not in str(caught.value)


def test_wrong_words_are_refused(tiny: Path, tiny_data: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"weights": "int9"},
        {"activations": "uint8:channel"},
        {"rounding": "adaronud"},
        {"exclude": ["nothing-like-it"]},
        {"policy": "{"},
        {"calibration": "median"},
        {"calibration_samples": 0},
    ]
    for options in wrong:
        with pytest.raises(oq.UserError):
            oq.quantize(tiny, tiny_data, **options)
