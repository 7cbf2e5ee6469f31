"""Smoothing as a choice of each layer: policies that ask for it are obeyed, tune --smooth auto finds it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.evaluation import load_session
from onnxq.tuning import tune
from onnxq.tuning.file_size import file_bytes
from passes import Context, Model, Quantize, load
from passes.core.errors import PolicyError, UserError
from passes.policy import LayerPolicy, Policy, Scheme
from passes.smooth import SMOOTH_KEY, Smooth
from tests.nets import Net
from tests.tuning import by_bits, write_labelled

TENSOR = Scheme.parse("int8:tensor")
PLAIN, SMOOTHED = LayerPolicy(TENSOR), LayerPolicy(TENSOR, smooth="output")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose depthwise channels differ by factors of up to 300, behind ReLU6, and its samples."""
    folder = tmp_path_factory.mktemp("smoothing")
    net = Net(seed=4)
    y = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 16, name="stem", act="relu6")
    y = net.conv(y, 16, 16, groups=16, name="depthwise", act="relu6")
    y = net.conv(y, 16, 24, 1, name="project", act="relu6")
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    proto = net.model(net.add("Gemm", y, net.weight(24, 6), name="fc")).proto
    node = next(node for node in proto.graph.node if node.name == "depthwise")
    held = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    factors = np.geomspace(1, 1 / 300, 16).astype(np.float32).reshape(-1, 1, 1, 1)
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) * factors, held.name))
    x = np.random.default_rng(1).normal(0, 1, (60, 3, 8, 8)).astype(np.float32)
    write_labelled(folder, proto, x)
    return folder


@pytest.fixture
def model(workspace: Path) -> Model:
    return load(workspace / "net.onnx")


def policy(**choices: LayerPolicy) -> Policy:
    return Policy({name: choices.get(name, PLAIN) for name in ("stem", "depthwise", "project", "fc")})


def test_quantize_obeys_the_smoothing_of_a_policy(model: Model) -> None:
    chosen = policy(depthwise=SMOOTHED)
    made = Quantize.of(chosen)(model, Context()).model
    wanted = (Smooth(layers=("depthwise",)) | Quantize.of(policy()))(model, Context()).model
    assert {t.name: t.SerializeToString() for t in made.proto.graph.initializer} == {
        t.name: t.SerializeToString() for t in wanted.proto.graph.initializer
    }
    assert [n.op_type for n in made.proto.graph.node] == [n.op_type for n in wanted.proto.graph.node]
    # What is smoothed stays as it is, and the policy in the file says what was done.
    before = Smooth(layers=("depthwise",))(model, Context()).model
    again = Quantize.of(chosen)(before, Context()).model
    assert Counter(n.op_type for n in again.proto.graph.node)["Mul"] == 1
    assert SMOOTH_KEY in again.metadata
    assert '"smooth":"output"' in made.metadata["onnxq.policy"]


def test_what_cannot_be_smoothed_is_said(model: Model) -> None:
    result = Quantize.of(policy(fc=SMOOTHED))(model, Context())
    assert any(note.node == "fc" and "only Conv is smoothed" in note.reason for note in result.notes)


def test_what_normalization_said_of_channels_is_forgotten(model: Model) -> None:
    """It holds for the channels as they were: biases corrected by it would be wrong behind new scales."""
    context = Context(distributions={"y": (np.zeros(3), np.ones(3))})
    wanted = dataclasses.replace(Quantize.of(policy(depthwise=SMOOTHED)), rounding="analytic")
    with pytest.raises(PolicyError, match="rounding=analytic needs BatchNormalization"):
        wanted(model, context)


def test_a_policy_may_smooth_and_leave_float(model: Model) -> None:
    alone = Policy({"depthwise": LayerPolicy(smooth="output")})
    result = Quantize.of(alone)(model, Context())
    assert Counter(n.op_type for n in result.model.proto.graph.node)["Mul"] == 1
    x = np.random.default_rng(2).normal(0, 1, (4, 3, 8, 8)).astype(np.float32)
    float_logits, logits = (
        load_session(held, threads=1).run(None, {"x": x})[0] for held in (model, result.model)
    )
    np.testing.assert_allclose(logits, float_logits, atol=1e-4)


@pytest.mark.parametrize("mode", ["weights", "static"])
def test_tune_chooses_it_layer_by_layer(workspace: Path, tmp_path: Path, mode: str) -> None:
    settings = by_bits(workspace, "", weights=("int8:tensor",), smooth="auto", modes=(mode,))
    result = tune(settings, tmp_path)
    assert result.finished
    policies = {c.name: Policy.from_json(c.policy) for c in result.candidates}
    smoothed = {c: frozenset(n for n in p if p[n].smooth == "output") for c, p in policies.items()}
    # The layer that needs it gets it, not every layer has to have it, and a Gemm never has.
    assert any("depthwise" in names for names in smoothed.values())
    assert len(set(smoothed.values())) > 2
    assert not any("fc" in names for names in smoothed.values())
    assert len({str(p.to_json()) for p in policies.values()}) == len(policies)
    errors = {c.name: c.metrics["mse"] for c in result.candidates}
    whole = [c for c, p in policies.items() if len(p.quantized) == 4]
    plain = next(c for c in whole if not smoothed[c])
    assert min(errors[c] for c in whole) < 0.8 * errors[plain]
    for path in (tmp_path / "front").glob("*.onnx"):
        muls = Counter(node.op_type for node in load(path).proto.graph.node)["Mul"]
        assert muls == len(smoothed[path.stem])


def test_its_scales_are_weighed(model: Model) -> None:
    held = policy(depthwise=SMOOTHED, stem=SMOOTHED)
    made = Quantize.of(held)(model, Context()).model
    assert file_bytes(model, held) == len(made.proto.SerializeToString())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": ("int8:channel", "gse4", "gse6")}, "serves weights of one scale"),
        ({"weights": ("int8:tensor",), "strategy": "ranking"}, "ranking has one scheme a layer"),
        ({"weights": ("int8:tensor",), "rounding": "gptq"}, "is measured with weights rounded to nearest"),
    ],
)
def test_where_it_has_no_meaning(workspace: Path, tmp_path: Path, options: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tune(by_bits(workspace, options.pop("strategy", ""), smooth="auto", **options), tmp_path / "run")
