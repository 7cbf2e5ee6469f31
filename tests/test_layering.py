"""Imports point down: between the three packages, between the floors of onnxq, and never in a circle.

The sources are parsed, not imported, so that imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"passes": {"onnxq"}, "runtime_ops": {"onnxq", "passes"}, "onnxq": set[str]()}
# Lowest first. A module of onnxq may import its own floor and those below it.
FLOORS = (
    (
        "_version",
        "documents",
        "errors",
        "files",
        "float_share",
        "hub",
        "inspection",
        "machine",
        "plugins",
        "session",
        "session_weights",
        "signals",
    ),
    ("data",),
    ("proof",),
    ("calibration",),
    ("metrics",),
    ("evaluation",),
    ("runners",),
    ("rounding",),
    ("sensitivity",),
    ("allocation",),
    ("search",),
    ("report",),
    ("training",),
    ("tuning", "public"),
    ("cli",),
    ("__init__", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
# The same inside passes/; a module is on the floor of the longest name here that it begins with. The passes
# themselves are on top, with __init__.
ROOMS = (
    ("core.errors", "core.fields"),
    ("graph",),
    ("rounding.second_order", "rounding.learned", "rounding.trellis"),
    ("formats",),
    ("policy",),
    ("rounding.task",),
    ("core",),
    ("opset", "folding"),
    ("placement",),
    ("rounding",),
    ("placement.insertion",),
    ("golden",),
    ("",),
)
ROOM_HEIGHT = {name: height for height, names in enumerate(ROOMS) for name in names}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module in the three packages."""
    found = {}
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> dict[str, int]:
    """Modules that `name` imports -> line number. `from package import module` counts as the module."""
    path = MODULES[name]
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                found.setdefault(target if target in MODULES else base, node.lineno)
    return found


EDGES = {name: imported(name) for name in MODULES}


def place(name: str, target: str) -> str:
    return f"{MODULES[name].relative_to(ROOT)}:{EDGES[name][target]}"


def test_packages_point_down() -> None:
    wrong = [
        f"{place(name, target)} imports {target}"
        for name, targets in EDGES.items()
        for target in targets
        if target.partition(".")[0] in FORBIDDEN[name.partition(".")[0]]
    ]
    assert not wrong


def floor(name: str) -> str:
    """The part of onnxq that a module belongs to: `onnxq.data.folder` -> `data`, `onnxq` -> `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


ONNXQ = sorted(name for name in MODULES if name.partition(".")[0] == "onnxq")


def test_every_part_of_onnxq_has_a_floor() -> None:
    unknown = {floor(name) for name in ONNXQ} - HEIGHT.keys()
    assert not unknown, "give these a place in FLOORS"


@pytest.mark.parametrize("name", ONNXQ)
def test_floors_point_down(name: str) -> None:
    height = HEIGHT.get(floor(name), len(FLOORS))
    wrong = [
        f"{place(name, target)} imports {target}"
        for target in EDGES[name]
        if target.partition(".")[0] == "onnxq" and HEIGHT.get(floor(target), 0) > height
    ]
    assert not wrong


PASSES = sorted(name for name in MODULES if name.partition(".")[0] == "passes")


def room_height(name: str) -> int:
    parts = name.split(".")[1:]
    rooms = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next(ROOM_HEIGHT[room] for room in rooms if room in ROOM_HEIGHT)


@pytest.mark.parametrize("name", PASSES)
def test_rooms_of_passes_point_down(name: str) -> None:
    wrong = [
        f"{place(name, target)} imports {target}"
        for target in EDGES[name]
        if target.partition(".")[0] == "passes" and room_height(target) > room_height(name)
    ]
    assert not wrong


def test_the_root_of_passes_lists_passes_and_nothing_else() -> None:
    """A file of its root registers a pass, or is the row of passes that runs in front of the others."""
    root = [path for name, path in MODULES.items() if path.parent == ROOT / "passes" and name != "passes"]
    others = [path.name for path in root if "@register" not in path.read_text(encoding="utf-8")]
    assert others == ["preparation.py"]


def test_every_room_says_what_it_holds() -> None:
    rooms = [
        path
        for path in MODULES.values()
        if path.name == "__init__.py" and path.parent.parent.name == "passes"
    ]
    assert len(rooms) == 9
    assert all(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in rooms)


def circles() -> list[list[str]]:
    """Groups of modules that import one another (Tarjan's strongly connected components of size > 1)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in EDGES[name]:
            if target not in MODULES:
                continue
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in EDGES[name]:
                found.append(sorted(group))

    for name in MODULES:
        if name not in index:
            visit(name)
    return found


def test_no_import_circles() -> None:
    assert circles() == []


def test_nobody_asks_which_format_a_scheme_has() -> None:
    """A new weight format is one file: what differs between formats is asked of the object."""
    names = {"GSE_OP", "PACKED_OP", "TCQ_OP", "SIMULATED_OP", "encode_gse", "round_trellis"}
    wrong = []
    for name, path in MODULES.items():
        if name.startswith(("passes.formats", "runtime_ops")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id in names:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if not isinstance(node, ast.Compare) or not isinstance(node.left, ast.Attribute):
                continue
            if node.left.attr == "format" and ast.unparse(node.left.value) != "image":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
