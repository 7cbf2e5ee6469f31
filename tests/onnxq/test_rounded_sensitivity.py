"""Sensitivities of weights that were rounded on data: what is measured is what the passes would write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from onnx import numpy_helper

from onnxq.evaluation import load_session
from onnxq.rounding import DataRounder
from onnxq.search import Journal
from onnxq.sensitivity import Settings, Variant, measure_sensitivities
from onnxq.sensitivity.rounded import RoundedWeights
from onnxq.sensitivity.values import PolicyValues
from onnxq.tuning import TuneConfig
from onnxq.tuning.allocate import parted
from onnxq.tuning.space import SPACE_RECORD, Space
from passes import Context, LayerPolicy, Policy, Quantize, Scheme, find_layers
from passes.graph.model import Model
from tests.nets import Net, Samples


def network() -> Model:
    """A depthwise layer, a residual connection, a Conv without a bias, and a Gemm with an alpha."""
    net = Net()
    a = net.conv(net.input("x", ["N", 3, 8, 8]), 3, 8, act="relu", name="stem")
    b = net.conv(a, 8, 8, groups=8, act="relu", name="depthwise")
    c = net.conv(b, 8, 8, k=1, bias=False, name="project")
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.add("Add", c, a)))
    bias = net.constant(np.ones(5, np.float32))
    return net.model(net.add("Gemm", pooled, net.weight(8, 5), bias, name="head", alpha=0.5))


def samples(count: int = 24) -> Samples:
    return Samples("x", np.random.default_rng(0).normal(1, 1, (count, 3, 8, 8)).astype(np.float32))


def logits(model: Model, x: Any) -> Any:
    return np.asarray(load_session(model, threads=1).run(None, {"x": x})[0], np.float64)


@pytest.mark.parametrize("rounding", ["gptq", "bias"])
def test_values_are_those_of_the_model_with_one_layer_quantized(rounding: Literal["gptq", "bias"]) -> None:
    """With one layer quantized its inputs are float's, so the passes round it in the same way. The layer in
    front of the Add has nothing to make up for."""
    model, data = network(), samples()
    layers, rounder = find_layers(model), DataRounder(data, threads=1)
    schemes = [Scheme.parse(text) for text in ("int3:channel", "gse4:block8", "tcq3")]
    variants = [Variant.of(layer.name, LayerPolicy(s)) for layer in layers for s in schemes]
    settings = Settings(precision=0)
    plain = measure_sensitivities(model, layers, data, variants, settings)
    rounded = RoundedWeights(model, rounder, rounding)
    found = measure_sensitivities(model, layers, data, variants, settings, rounded=rounded)
    wanted = logits(model, data.array)
    for variant in variants:
        step = dataclasses.replace(Quantize.of(Policy(dict(variant.choices))), rounding=rounding)
        whole = step(model, Context(check=False, rounder=rounder)).model
        mse = np.square(logits(whole, data.array) - wanted).mean()
        assert found[variant.key].mse == pytest.approx(mse, rel=2e-3)
    if rounding == "gptq":
        assert sum(e.mse for e in found.values()) < 0.5 * sum(e.mse for e in plain.values())


def test_policy_values_are_of_rounded_weights() -> None:
    model, data = network(), samples()
    layers = find_layers(model)
    rounded = RoundedWeights(model, DataRounder(data, threads=1), "gptq")
    policy = Policy({layer.name: LayerPolicy(Scheme.parse("int3:channel")) for layer in layers})
    plain, better = PolicyValues(model, layers, data), PolicyValues(model, layers, data, rounded=rounded)
    assert better.mse(policy) < 0.5 * plain.mse(policy)


def test_journal_keeps_roundings_apart(tmp_path: Path) -> None:
    model, data = network(), samples()
    layers, settings = find_layers(model), Settings(precision=0)
    variant = Variant.of("stem", LayerPolicy(Scheme.parse("int3:channel")))
    rounded = RoundedWeights(model, DataRounder(data, threads=1), "gptq")
    values = []
    with Journal(tmp_path, {"of": "test"}) as journal:
        for source in (None, rounded):
            space = Space(model, layers, data, journal, settings, rounded=source)
            space.measure([variant])
            values.append(space.known(variant).mse)
        assert len(journal.records(SPACE_RECORD)) == 2
        again = [Space(model, layers, data, journal, settings, rounded=source) for source in (None, rounded)]
        assert [space.known(variant).mse for space in again] == values
    assert values[1] < values[0]


def test_a_resumed_run_walks_over_the_data_once_for_all_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = network(), samples()
    layers, walks = find_layers(model), []
    choices = [LayerPolicy(Scheme.parse(text)) for text in ("int3:channel", "int4:channel")]
    alone = DataRounder.alone

    def counted(self: DataRounder, *args: Any) -> Any:
        walks.append(len(args[1]))
        return alone(self, *args)

    monkeypatch.setattr(DataRounder, "alone", counted)
    with Journal(tmp_path, {"of": "test"}) as journal:
        for start in (0, 1):
            rounded = RoundedWeights(model, DataRounder(data, threads=1), "gptq")
            space = Space(model, layers, data, journal, Settings(precision=0), rounded=rounded)
            problem = space.problem(choices, file_bytes=10**6, macs={})
            for layer in range(len(layers)):
                assignment = problem.uniform(0)
                assignment[layer] = start
                space.mse(problem, assignment)
    # The first run rounds for its sensitivities, the second for its policies.
    assert [size for size in walks if size] == [len(layers)] * 2


def test_sensitivities_are_measured_on_samples_that_rounding_has_not_seen() -> None:
    model, data = network(), samples(30)
    data.array[:] = np.arange(30, dtype=np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    config = TuneConfig(model="", data="", rounding="gptq")
    fit, seen = (
        {int(v) for batch in part.batches(4) for v in batch.inputs["x"][:, 0, 0, 0]}
        for part in parted(data, model, config.rounding_options)
    )
    assert not fit & seen
    assert fit | seen == set(range(30))
    assert len(fit) % 8 == 0
    nearest = parted(data, model, TuneConfig(model="", data="").rounding_options)
    assert [len(part) for part in nearest] == [30, 30]


def test_damping_of_a_layer_by_itself_is_chosen_on_other_samples() -> None:
    """A layer of more columns than there are samples: with 1.0 it is rounded on their noise."""
    net = Net()
    model = net.model(
        net.add("Gemm", net.input("x", ["N", 128]), net.weight(128, 16), net.weight(16), name="fc")
    )
    layer, scheme = find_layers(model)[0], Scheme.parse("int2:channel")
    values = np.random.default_rng(1).normal(0, 1, (32, 128)).astype(np.float32)
    new = np.random.default_rng(2).normal(0, 1, (4_000, 128))
    weight = next(t for t in model.proto.graph.initializer if t.name == layer.weight)
    wanted = new @ numpy_helper.to_array(weight).astype(np.float64)

    def error(damping: float | None) -> float:
        rounder = DataRounder(Samples("x", values), damping=damping, threads=1)
        found = RoundedWeights(model, rounder, "gptq").get(layer, scheme)
        assert found is not None
        return float(np.square(new @ found[0] - wanted).mean())

    assert error(None) < 0.9 * error(1.0) < error(0.1)
