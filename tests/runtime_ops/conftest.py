"""The C++ library for tests: where it was not built they skip, or fail if ONNXQ_REQUIRE_NATIVE=1."""

from __future__ import annotations

import os

import pytest

from runtime_ops.library import LibraryMissingError, load_library


@pytest.fixture(scope="session")
def native() -> None:
    """Only run where the C++ library is there."""
    try:
        load_library()
    except LibraryMissingError as error:
        if os.environ.get("ONNXQ_REQUIRE_NATIVE", "0") not in ("", "0"):
            pytest.fail(str(error))
        pytest.skip(str(error))
