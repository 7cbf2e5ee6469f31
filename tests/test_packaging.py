"""What a user installs: one version, types, public names, and bounds that are the ones CI tests."""

from __future__ import annotations

import configparser
import importlib
import re
from pathlib import Path

import pytest

import onnxq
from onnxq import _version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["onnxq", "passes", "runtime_ops"]
SUBPACKAGES = sorted(
    ".".join(folder.relative_to(ROOT).parts)
    for package in PACKAGES
    for folder in [ROOT / package, *(ROOT / package).rglob("*")]
    if folder.is_dir() and any(folder.glob("*.py"))
)


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, str]:
    """`name -> first version named`, from lines such as `onnx>=1.17` or `onnx==1.17.0`."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"([a-z0-9-]+)[>=]=([0-9.]+)", line.strip())
        if match:
            found[match[1]] = match[2]
    return found


def test_version_is_one(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["version"] == "attr: onnxq._version.__version__"
    assert onnxq.__version__ == _version.__version__


def test_oldest_constraints_are_the_lower_bounds(config: configparser.ConfigParser) -> None:
    bounds = requirements(config["options"]["install_requires"])
    pinned = requirements((ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8"))
    assert bounds.keys() == pinned.keys()
    for name, bound in bounds.items():
        assert pinned[name] == bound or re.fullmatch(rf"{re.escape(bound)}(\.0)+", pinned[name]), name


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package: str, config: configparser.ConfigParser) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in config["options.package_data"][package].split()


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_folder_is_a_package(package: str) -> None:
    assert (ROOT / package.replace(".", "/") / "__init__.py").is_file(), "find: would leave this folder out"


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_public_names_are_declared(package: str) -> None:
    module = importlib.import_module(package)
    assert isinstance(module.__all__, (list, tuple))
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


def test_every_data_file_is_in_the_wheel(config: configparser.ConfigParser) -> None:
    """A file beside the code that package_data does not name works in a checkout and not for a user."""
    for package in PACKAGES:
        patterns = config["options.package_data"][package].split()
        shipped = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        present = {
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file()
            and path.suffix not in {".py", ".pyc", ".so", ".dylib", ".dll"}
            and path.name != "not_built.txt"
            and "__pycache__" not in path.parts
            and (ROOT / "runtime_ops" / "native" / "test") not in path.parents
        }
        assert present <= shipped
