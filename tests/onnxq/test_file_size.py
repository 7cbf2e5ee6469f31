"""The size of a policy's file, from the file that the passes make: without data and without a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.allocation.problem import Problem
from onnxq.tuning.file_size import file_bytes, with_real_sizes
from onnxq.tuning.models import saved_bytes
from passes import Context, FoldBatchNorm, Model, Quantize, Simplify, load
from passes.graph.layers import find_layers, macs
from passes.opset import upgrade
from passes.policy import LayerPolicy, Policy, Scheme

SCHEMES = ("gse2", "int3:channel", "tcq3", "uint4:channel", "gse4:block16", "int8:channel", "float")
CHOICES = [LayerPolicy(Scheme.parse(text)) for text in SCHEMES]
STATIC = LayerPolicy(Scheme.parse("int8:channel"), Scheme.parse("uint8:asym"))
DYNAMIC = LayerPolicy(Scheme.parse("int8:channel"), Scheme.parse("uint8:asym:dynamic"))


@pytest.fixture(scope="module")
def model() -> Model:
    source = load(Path(__file__).resolve().parents[2] / "models" / "resnet20.onnx")
    folded = (Simplify() | FoldBatchNorm())(source).model
    return upgrade(folded, 21, "the test", Context())


def real(model: Model, policy: Policy) -> int:
    ranges = Context(ranges=lambda _, tensors: {name: (-3.0, 4.5) for name, _bits in tensors})
    return saved_bytes(Quantize.of(policy)(model, ranges).model)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_policies_are_weighed_to_the_byte(model: Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = find_layers(model)
    policy = Policy({layer.name: CHOICES[int(rng.integers(len(CHOICES)))] for layer in layers})
    assert file_bytes(model, policy) == real(model, policy)


@pytest.mark.parametrize("choice", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_quantized_activations_are_weighed_to_the_byte(model: Model, choice: LayerPolicy) -> None:
    policy = Policy({layer.name: choice for layer in find_layers(model)})
    assert file_bytes(model, policy) == real(model, policy)


def test_uniform_files_correct_the_prediction(model: Model) -> None:
    layers = find_layers(model)
    size = saved_bytes(model)
    guess = Problem.of(layers, CHOICES, lambda *_: 0.0, file_bytes=size, macs=macs(model))
    held = with_real_sizes(guess, model)
    gaps = []
    for index in range(len(CHOICES)):
        uniform = held.uniform(index)
        weighed = real(model, held.policy(uniform))
        assert held.size(uniform) == pytest.approx(weighed, abs=1)
        gaps.append(abs(guess.size(uniform) / weighed - 1))
    assert max(gaps) > 0.05  # what is corrected here
