"""What reaches the terminal: names from files cannot move the cursor, colour it, or forge lines."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper, numpy_helper

import onnxq.cli
from onnxq.cli.bar import TerminalBar
from onnxq.cli.terminal import printable

Invoke = Callable[..., Result]
EVIL = "\x1b[31mred\x07\r\n\t\x00\x7f\x9b2J\u202egnp\u2028"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]")
# `doctor` and `completion` print nothing from outside; app's is the empty line behind ^C.
MAY_ECHO = {"terminal.py", "doctor.py", "completion.py", "app.py"}


def evil_model(path: Path) -> Path:
    """Every name is evil: the graph's, its tensors', its nodes', the producer's, a domain's."""
    rng = np.random.default_rng(0)
    node = helper.make_node("MatMul", [f"x{EVIL}", f"w{EVIL}"], [f"y{EVIL}"], f"layer {EVIL}")
    weight = numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), f"w{EVIL}")
    inputs = [helper.make_tensor_value_info(f"x{EVIL}", onnx.TensorProto.FLOAT, [f"N{EVIL}", 8])]
    outputs = [helper.make_tensor_value_info(f"y{EVIL}", onnx.TensorProto.FLOAT, [None, 4])]
    graph = helper.make_graph([node], f"g{EVIL}", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(f"d{EVIL}", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=f"p{EVIL}")
    onnx.save(model, path)
    return path


def test_printable() -> None:
    assert printable("a é 日本 b") == "a é 日本 b"
    assert printable("\x1b[1m\n\t\x00\x9b\u202e\ud800") == r"\x1b[1m\n\t\x00\x9b\u202e\ud800"


@pytest.mark.parametrize(
    "command",
    [
        ("info", "M"),
        ("fold", "M", "-o", "out.onnx", "--explain"),
        ("quantize", "M", "--activations", "dynamic", "-o", "out.onnx", "--explain"),
        ("quantize", "M", "--exclude", "nothing like it", "--activations", "float", "-o", "out.onnx"),
        ("quantize", "M", "--data", "data.npz", "-o", "out.onnx"),
        ("quantize", "M", "--policy", f"no{EVIL}such.json".replace("\x00", ""), "-o", "out.onnx"),
        ("golden", "check", "simplify", "M", "golden.txt"),
        ("info", "M", f"one{EVIL}argument too many"),
    ],
    ids=lambda command: command[0],
)
def test_no_control_character_is_printed(command: tuple[str, ...], invoke: Invoke, work: Path) -> None:
    evil_model(work / "m.onnx")
    (work / "golden.txt").write_text(f"other {EVIL}", encoding="utf-8")
    result = invoke(*("m.onnx" if word == "M" else word for word in command))
    assert result.exit_code in (0, 1, 2), result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert not CONTROL.search(result.output), result.output
    if command[0] == "info" and len(command) == 2:
        assert r"layer \x1b[31mred\x07\r\n" in result.stdout


def test_json_stays_json(invoke: Invoke, work: Path) -> None:
    evil_model(work / "m.onnx")
    text = invoke("info", "m.onnx", "--json").stdout
    assert not CONTROL.search(text)
    facts = json.loads(text)
    assert facts["layers"][0]["name"] == f"layer {EVIL}"
    assert facts["opset"][f"d{EVIL}"] == 1


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.stderr", SimpleNamespace(isatty=lambda: True, write=lambda _: 0, flush=lambda: None)
    )
    with TerminalBar("{task.description}", "{task.fields[best]}") as shown:
        task: Any = SimpleNamespace(description=f"[bold]{EVIL}", fields={"best": EVIL})
        words = [column.render(task).plain for column in (shown.bar.columns[0], shown.bar.columns[-1])]
    assert words == [printable(f"[bold]{EVIL}"), printable(EVIL)]


def test_only_the_terminal_module_prints() -> None:
    """Everything else goes through its functions, which escape."""
    folder = Path(onnxq.cli.__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.name in MAY_ECHO:
            continue
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
        ]
        names = [ast.unparse(function) for function in calls]
        assert not {"print", "click.echo", "click.secho"} & set(names), f"{path.name} prints by itself"


def test_a_remark_on_a_model_is_told_once(invoke: Invoke, work: Path) -> None:
    model = onnx.load("tiny.onnx")
    model.graph.ClearField("name")
    onnx.save(model, "nameless.onnx")
    result = invoke("fold", "nameless.onnx", "-o", "out.onnx")
    assert result.exit_code == 0
    assert result.stderr.count("Warning: nameless.onnx: its graph has no name") == 1
