"""Golden graphs: each file in tests/passes/golden holds a model, passes, and the graph they must make.

A file is plain text in sections, each opened by a line of its own:

    # what the case shows (any number of lines)
    --- input          the model in ONNX's text format (onnx.parser)
    --- pass           passes in recipe form
    --- expected       canonical text of the result (passes/golden/text.py)
    --- notes          notes of the passes, one a line (the section is absent where there are none)

`pytest tests/passes/test_golden_files.py --update-golden` writes the last two anew; read the difference
before committing it. A new case needs the first two sections only, and one run with that option.
Every tensor's calibrated range is -1 to 2. Beside the text, each case checks that the passes are
idempotent, keep the signature, and keep the outputs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import passes.fold_batchnorm
import passes.simplify  # noqa: F401 - registers the pass
from passes.core.base import Context
from passes.core.recipe import parse_recipe
from passes.golden.text import canonical_text, diff
from passes.graph.model import Model, check

FILES = sorted((Path(__file__).parent / "golden").glob("*.txt"))
QUANTIZING = re.compile(r"\b(quantize|smooth)\b")


def sections(text: str) -> dict[str, str]:
    """Section name -> body; the comment at the top is "" ."""
    parts = re.split(r"^--- (\w+)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def outputs(model: onnx.ModelProto) -> list[npt.NDArray[Any]]:
    """What ONNX Runtime makes of seeded inputs, symbolic dimensions being 2."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 2 for dim in value.shape]
        if value.type == "tensor(float)":
            feeds[value.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = np.ones(
                shape, {"tensor(bool)": np.bool_, "tensor(int64)": np.int64}[value.type]
            )
    return list(session.run(None, feeds))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden(file: Path, update_golden: bool) -> None:
    parts = sections(file.read_text(encoding="utf-8"))
    proto = onnx.parser.parse_model(parts["input"])
    model = Model(proto, file.stem)
    before = proto.SerializeToString(deterministic=True)
    recipe = parse_recipe(parts["pass"], str(file))
    context = Context(ranges=lambda _, wanted: {name: (-1.0, 2.0) for name, _ in wanted})
    result = recipe(model, context)
    notes = "".join(f"{note}\n" for note in context.notes)
    actual = canonical_text(result.model)

    check(result.model)
    assert proto.SerializeToString(deterministic=True) == before, "the pass wrote into its input"
    assert not recipe(result.model).modified, "not idempotent"
    assert list(result.model.proto.graph.output) == list(proto.graph.output)
    if not QUANTIZING.search(parts["pass"]):
        for wanted, got in zip(outputs(proto), outputs(result.model.proto), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    if update_golden:
        head = f"{parts['']}--- input\n{parts['input']}--- pass\n{parts['pass']}"
        tail = f"--- notes\n{notes}" if notes else ""
        file.write_text(f"{head}--- expected\n{actual}{tail}", encoding="utf-8")
        return
    difference = diff(parts.get("expected", ""), actual) or diff(parts.get("notes", ""), notes)
    if difference:
        pytest.fail(f"{file}\n{difference}", pytrace=False)


def test_there_are_cases() -> None:
    assert len(FILES) >= 20
