"""What a CPU without VNNI, or one whose hypervisor hides instructions, changes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq import machine
from onnxq.runners.host_cpu import hidden_features
from onnxq.session import load_session
from passes.quantize import Quantize
from tests.nets import Net, apply, run, sqnr

FLAGS = frozenset(["sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "rdrand"])


def test_features_that_linux_does_not_name_are_hidden() -> None:
    found = ["sse4.1", "avx2", "bmi", "lzcnt", "rdrnd", "avx512f", "avx512vnni", "gfni", "fast-lzcnt"]
    assert hidden_features(found, FLAGS) == ["avx512f", "avx512vnni", "gfni"]
    assert hidden_features(found, FLAGS | {"avx512f", "avx512_vnni", "gfni"}) == []
    # Where the system tells nothing, nothing is known to be hidden.
    assert hidden_features(found, frozenset()) == []


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [(["avx2"], True), (["avx2", "avx_vnni"], False), (["avx512_vnni"], False), ([], False)],
)
def test_saturation_goes_by_vnni(monkeypatch: pytest.MonkeyPatch, flags: list[str], saturates: bool) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert machine.saturates() == saturates
    warning = machine.vnni_warning()
    assert (warning is not None and "session.x64quantprecision" in warning) == saturates


def test_a_session_computes_what_the_file_says_on_any_cpu() -> None:
    """Large codes on both sides, whose pairs of products do not fit in 16 bits."""
    net = Net()
    x = net.input("x", ["N", 64])
    weight = np.full((64, 8), 1.0, np.float32) * np.linspace(0.9, 1.0, 8, dtype=np.float32)
    model = net.model(net.add("MatMul", x, net.constant(weight, "w")))
    inputs = {"x": np.random.default_rng(0).uniform(0.8, 1.0, (4, 64)).astype(np.float32)}
    result = apply(Quantize(activations="uint8"), model, inputs).model
    found = np.asarray(load_session(result, threads=1).run(None, inputs)[0])
    assert sqnr(run(model, inputs)[0], found) > 30
