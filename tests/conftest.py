"""Options and fixtures of the whole suite."""

from __future__ import annotations

from importlib import metadata

import hypothesis
import pytest

# No test is about time: a busy machine must not fail one.
# The same examples every time, so that a failure is about the change; others: --hypothesis-profile=explore.
hypothesis.settings.register_profile("onnxq", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("onnxq")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew instead of comparing with them"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew."""
    return bool(request.config.getoption("--update-golden"))


_RACING = "test_racing_gives_up_and_never_lets_a_partial_measurement_on_the_front"
_UNSIGNED = "this ONNX Runtime cannot run unsigned per-channel weights; 1.24 and newer can"
_NEWER = "this ONNX Runtime knows no opset 25, which int2 needs; 1.24 and newer do"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs opset 25 where the installed ONNX Runtime is the oldest one that is supported."""
    major, minor = (int(part) for part in metadata.version("onnxruntime").split(".")[:2])
    if (major, minor) >= (1, 24):
        return
    for item in items:
        if "uint8:channel" in item.name and "dynamic" not in item.name:
            item.add_marker(pytest.mark.skip(reason=_UNSIGNED))
        if "int2" in item.name or "25]" in item.name or item.name == _RACING:
            item.add_marker(pytest.mark.skip(reason=_NEWER))
