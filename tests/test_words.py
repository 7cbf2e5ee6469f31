"""Messages below the command line name fields of the API; only the command line knows its options."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTION = re.compile(r"(?<![\w-])--[a-z]")
# pytest's own option, in the message of a golden file that is missing.
ALLOWED = {"passes/golden/text.py"}


def _raised(path: Path) -> list[str]:
    """Every text inside of what a module raises."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return [
        part.value
        for node in raised
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def test_no_error_below_the_command_line_names_its_options() -> None:
    modules = [path for part in ("onnxq", "passes") for path in sorted((ROOT / part).rglob("*.py"))]
    below = [path for path in modules if "cli" not in path.parts]
    assert len(below) > 200
    named = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in below
        if str(path.relative_to(ROOT).as_posix()) not in ALLOWED
        for text in _raised(path)
        if OPTION.search(text)
    ]
    assert not named


def test_fields_become_the_options_of_the_running_command() -> None:
    from onnxq.cli.app import cli
    from onnxq.cli.flags import as_flags

    tune = cli.get_command(click.Context(cli), "tune")
    assert tune is not None
    with click.Context(tune):
        shown = as_flags("`modes`, `limits`, `metric_floor`, `output` and `elsewhere`")
    assert shown == "--mode, --cost-limit, --metric-floor, --output and elsewhere"
    assert as_flags("`modes` alone") == "modes alone"


COMMANDS = ["tune", "train", "quantize", "sensitivity", "allocate", "bench", "apply"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_rule_is_about_options_that_the_command_has(command: str) -> None:
    from onnxq.cli.app import cli
    from onnxq.cli.unread import rules_of

    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    names = {parameter.name for parameter in made.params}
    rules = rules_of(command)
    assert rules
    assert rules.keys() <= names
    assert {field for conditions in rules.values() for when in conditions for field in when.fields} <= names


@pytest.mark.parametrize("command", ["tune", "train"])
def test_defaults_of_options_are_those_of_the_configuration(command: str) -> None:
    from onnxq.cli.app import cli
    from onnxq.training.config import TrainConfig
    from onnxq.tuning import TuneConfig
    from passes.core.fields import declared

    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    known = declared(TuneConfig if command == "tune" else TrainConfig)
    typed = {
        parameter.name: parameter
        for parameter in made.params
        if parameter.name in known and isinstance(parameter, click.Option) and not parameter.required
    }
    # These are written in another way on the command line.
    for name in ("bits", "precision") if command == "train" else ():
        typed.pop(name)
    settings = made.make_context(command, ["m.onnx"], resilient_parsing=True).params
    # None and nothing at all are both nothing here.
    defaults = {name: settings[name] or known[name].default for name in typed}
    assert len(defaults) > 20
    assert {name: known[name].default for name in defaults} == defaults
