"""The sensitivity engine against the plain way: quantize, run whole, compare logits."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxq.evaluation import load_session
from onnxq.sensitivity import Sensitivity, Settings, Variant, measure_sensitivities
from onnxq.sensitivity.replay import Replay
from onnxq.sensitivity.statistics import Accumulator
from onnxq.sensitivity.values import PolicyValues, WholeValues
from passes.core.base import Context
from passes.core.errors import DataError
from passes.graph.layers import find_layers
from passes.graph.model import Model
from passes.policy import LayerPolicy, Policy, Scheme
from passes.quantize import Quantize
from passes.smooth import Smooth
from tests.nets import Net, Samples, ranges_of, sqnr, tensors

N = 24


def network() -> Model:
    """Two residual blocks with a depthwise layer each, a head and a Gemm; 15 classes."""
    net = Net(seed=3)
    x = net.input("x", ["N", 3, 8, 8])
    y = net.conv(x, 3, 8, name="stem", act="relu6")
    for block in range(2):
        z = net.conv(y, 8, 16, 1, name=f"expand{block}", act="relu6")
        z = net.conv(z, 16, 16, groups=16, name=f"depthwise{block}", act="relu6")
        z = net.conv(z, 16, 8, 1, name=f"project{block}")
        y = net.add("Add", y, z)
    y = net.add("Flatten", net.add("GlobalAveragePool", net.conv(y, 8, 12, 1, name="head", act="relu")))
    bias = net.constant(np.zeros(15, np.float32))
    return net.model(net.add("Gemm", y, net.weight(12, 15), bias, name="fc"))


@pytest.fixture(scope="module")
def model() -> Model:
    return network()


@pytest.fixture(scope="module")
def data() -> Samples:
    rng = np.random.default_rng(1)
    return Samples("x", rng.normal(0, 1, (N, 3, 8, 8)).astype(np.float32))


def choice(text: str, activations: str = "float", smooth: Any = "none") -> LayerPolicy:
    return LayerPolicy(Scheme.parse(text), Scheme.parse(activations), smooth)


def plain(model: Model, data: Samples, variant: Variant) -> float:
    """Logit MSE of the whole quantized model against the whole float model."""
    held = model
    for name, option in variant.choices:
        if option.smooth != "none":  # quantize does it by itself, and not again what was done here
            held = Smooth(site=option.smooth, layers=(name,))(held, Context()).model
    inputs = {"x": data.array}
    context = Context(ranges=ranges_of(inputs))
    quantized = Quantize.of(Policy(dict(variant.choices)))(held, context).model
    # Through load_session: stock ONNX Runtime turns int4 Gemms into MatMulNBits, which rounds otherwise.
    logits, wanted = (load_session(m, threads=1).run(None, inputs)[0] for m in (quantized, model))
    return float(np.square(logits.astype(np.float64) - wanted).mean())


def measure(model: Model, data: Samples, variants: list[Variant], **options: Any) -> dict[str, Sensitivity]:
    settings = Settings(**{"precision": 0.0, **options})
    return measure_sensitivities(
        model, find_layers(model), data, variants, settings, ranges=ranges_of({"x": data.array})
    )


def test_weights_of_every_layer_equal_the_plain_way(model: Model, data: Samples) -> None:
    schemes = ("gse2", "gse6:block16", "int4:channel", "int5:block32", "tcq3")
    variants = [Variant.of(layer.name, choice(s)) for layer in find_layers(model) for s in schemes]
    found = measure(model, data, variants)
    assert list(found) == [variant.key for variant in variants]
    for variant in variants:
        entry = found[variant.key]
        assert entry.samples == N
        assert entry.mse == pytest.approx(plain(model, data, variant), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    "variant",
    [
        Variant.of("expand1", choice("int8:channel", "uint8")),
        Variant.of("stem", choice("int4", "uint8")),
        Variant.of("depthwise0", choice("int8", "float", "output")),
        Variant(((("expand0"), choice("gse3")), ("head", choice("gse4")))),
        Variant.of("fc", choice("float", "uint8")),
    ],
    ids=lambda variant: variant.key,
)
def test_activations_smoothing_and_pairs_equal_the_plain_way(
    model: Model, data: Samples, variant: Variant
) -> None:
    entry = measure(model, data, [variant])[variant.key]
    assert entry.mse == pytest.approx(plain(model, data, variant), rel=2e-3, abs=1e-9)


def test_sqnr_is_that_of_the_layers_own_output(model: Model, data: Samples) -> None:
    variant = Variant.of("depthwise1", choice("gse4"))
    found = measure(model, data, [variant])[variant.key]
    subset = data.array[np.random.default_rng(0).permutation(N)][:16]
    quantized = Quantize.of(Policy(dict(variant.choices)))(model, Context()).model
    name = next(node.output[0] for node in model.proto.graph.node if node.name == "depthwise1")
    values = [tensors(held, [name], {"x": subset})[name] for held in (model, quantized)]
    assert found.sqnr == pytest.approx(sqnr(*values), abs=0.01)


def test_threads_spilling_and_order_change_nothing(model: Model, data: Samples) -> None:
    variants = [Variant.of(name, choice("gse3")) for name in ("project1", "stem", "fc", "expand0")]
    once = measure(model, data, variants)
    again = measure(model, data, variants[::-1], threads=3, budget=1)
    assert {key: entry.mse for key, entry in once.items()} == {key: entry.mse for key, entry in again.items()}


def test_activations_over_the_budget_go_to_a_file(model: Model, data: Samples) -> None:
    with Replay(model, data, budget=1) as replay:
        replay.advance(len(replay.segments) - 1)
        assert replay.spilled == len(replay.segments) - 1
        assert replay._held is not None
        path = replay._held.path
        assert path is not None
        assert path.stat().st_size == 4 * math.prod(replay._held.shape)
    assert not path.parent.exists()


def test_the_budget_is_for_both_cuts_of_a_step(model: Model, data: Samples) -> None:
    """A cut is made from the one before it, so that two are held at that moment."""
    with Replay(model, data) as replay:
        replay.advance(1)
        assert replay._held is not None
        first = replay._held.memory
        replay.budget = first + 1
        replay.advance(2)
        assert replay._held.path is not None
        assert replay.spilled == 1
        replay.advance(3)
        assert replay._held.memory <= replay.budget


def test_what_is_known_is_not_measured_again(model: Model, data: Samples) -> None:
    layers = find_layers(model)
    first = [Variant.of(layer.name, choice("gse4")) for layer in layers]
    recorded: list[str] = []
    known = measure_sensitivities(model, layers, data, first)
    more = [*first, *(Variant.of(layer.name, choice("gse2")) for layer in layers)]
    found = measure_sensitivities(
        model, layers, data, more, known=known, record=lambda entry: recorded.append(entry.key)
    )
    assert len(found) == len(more)
    assert len(recorded) == len(layers)
    assert all("gse2" in key for key in recorded)


def test_a_variant_stops_when_it_is_known_well_enough(model: Model, data: Samples) -> None:
    variants = [Variant.of(name, choice("gse2")) for name in ("stem", "fc", "expand1")]
    data = Samples("x", np.concatenate([data.array] * 4))
    loose = measure(model, data, variants, precision=10.0)
    exact = measure(model, data, variants)
    for key, entry in loose.items():
        assert entry.samples < 4 * N
        assert entry.stderr <= 10 * entry.mse
        assert entry.mse == pytest.approx(exact[key].mse, rel=0.9)


def test_deadline_leaves_what_is_missing_out(model: Model, data: Samples) -> None:
    variants = [Variant.of(layer.name, choice("gse4")) for layer in find_layers(model)]
    late = time.monotonic() - 1
    # One is measured however late it is, so that a run that is started again gets further.
    assert len(measure_sensitivities(model, find_layers(model), data, variants, deadline=late)) == 1


def test_no_samples_is_refused(model: Model) -> None:
    empty = Samples("x", np.zeros((0, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="holds no sample"):
        measure_sensitivities(model, find_layers(model), empty, [Variant.of("fc", choice("gse4"))])


def test_layer_in_a_subgraph_runs_whole(data: Samples) -> None:
    """A Conv inside both branches of an If: nothing can be cut, and the values are the plain way's."""
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,8,8] x) => (float[N,5] y) <float[1] zero = {0}, int64[1] one = {1}> {
          [first] a = Conv<pads=[1,1,1,1]>(x, w1)
          r = Relu(a)
          m = ReduceMax<keepdims=0>(r)
          c = Cast<to=9>(m)
          [choice] b = If(c) <
            then_branch = yes () => (float[N,4,8,8] t) { [inner] t = Conv<pads=[1,1,1,1]>(r, w2) },
            else_branch = no () => (float[N,4,8,8] e) { e = Identity(r) }
          >
          g = GlobalAveragePool(b)
          f = Flatten(g)
          [fc] y = Gemm(f, w3)
        }
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (4, 4, 3, 3)), ("w3", (4, 5))):
        array = rng.normal(0, 0.3, shape).astype(np.float32)
        node = next(node for node in proto.graph.node if node.name == "choice")
        graph = node.attribute[0].g if name == "w2" else proto.graph
        graph.initializer.append(numpy_helper.from_array(array, name))
    model = Model(proto, "if.onnx")
    variants = [Variant.of(name, choice("gse3")) for name in ("first", "inner", "fc")]
    found = measure(model, data, variants)
    for variant in variants:
        expected = plain(model, data, variant)
        assert found[variant.key].mse == pytest.approx(expected, rel=1e-3)
        assert expected > 0
    assert found["inner=gse3:block32"].sqnr is None


def test_a_shared_weight_is_varied_for_one_layer_alone(data: Samples) -> None:
    net = Net(seed=5)
    x = net.input("x", ["N", 3, 8, 8])
    shared = net.weight(3, 3, 3, 3)
    y = net.add("Relu", net.add("Conv", x, shared, name="one", pads=[1] * 4))
    z = net.add("Add", y, net.add("Conv", y, shared, name="two", pads=[1] * 4))
    model = net.model(net.add("Flatten", net.add("GlobalAveragePool", z)))
    for name in ("one", "two"):
        variant = Variant.of(name, choice("gse3"))
        entry = measure(model, data, [variant])[variant.key]
        assert entry.mse == pytest.approx(plain(model, data, variant), rel=1e-3)


def test_policy_values_equal_the_plain_way_in_any_order(model: Model, data: Samples) -> None:
    layers = find_layers(model)
    values = PolicyValues(model, layers, data)
    rng = np.random.default_rng(0)
    for _ in range(6):
        texts = rng.choice(["gse2", "gse4", "gse8", "float"], len(layers))
        schemes = {layer.name: Scheme.parse(str(text)) for layer, text in zip(layers, texts, strict=True)}
        whole = Variant(tuple((name, LayerPolicy(scheme)) for name, scheme in schemes.items()))
        assert values.mse(Policy(dict(whole.choices))) == pytest.approx(
            plain(model, data, whole), rel=1e-3, abs=1e-9
        )
    assert values.mse(Policy()) == pytest.approx(0, abs=1e-9)


def test_whole_values_count_activations(model: Model, data: Samples) -> None:
    layers = find_layers(model)
    values = WholeValues(model, data, ranges_of({"x": data.array}))
    options = [choice("gse4", "gse6:block8"), choice("int8:channel", "uint4:asym"), choice("float", "uint8")]
    chosen = tuple((layer.name, options[index % 3]) for index, layer in enumerate(layers))
    found = values.mse(Policy(dict(chosen)))
    assert found == pytest.approx(plain(model, data, Variant(chosen)), rel=1e-5)
    weights = Policy({name: LayerPolicy(option.weights) for name, option in chosen})
    assert found > 1.05 * values.mse(weights) > 0


@pytest.mark.parametrize("scheme", ["uint2:asym", "uint4:asym", "gse4:block16", "uint8:dynamic"])
def test_activations_of_every_layer_equal_the_plain_way(model: Model, data: Samples, scheme: str) -> None:
    """Several schemes of a layer share where they begin; each still is what the passes make of it alone."""
    layers = [layer.name for layer in find_layers(model)][:4]
    texts = [scheme, "uint6:asym"] if scheme.startswith("uint2") else [scheme]
    variants = [Variant.of(name, choice("float", text)) for name in layers for text in texts]
    if scheme == "uint8:dynamic":
        variants = [Variant.of(name, choice("int8", scheme)) for name in layers]
    found = measure(model, data, variants)
    for variant in variants:
        wanted = plain(model, data, variant)
        assert found[variant.key].mse == pytest.approx(wanted, rel=2e-3, abs=1e-9)
        assert wanted > 0


def test_statistics_of_known_logits() -> None:
    reference = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    errors = Accumulator(reference)
    errors.update(reference[:1])
    assert errors.result("same").mse == 0
    assert errors.result("same").kl == pytest.approx(0)
    errors.restart()
    errors.update(reference[:2] + np.array([[1, 1], [2, 0]], np.float32))
    found = errors.result("key")
    assert found.mse == pytest.approx((1 + 2) / 2)
    assert found.stderr == pytest.approx(np.std([1, 2], ddof=1) / np.sqrt(2))
    assert found.agreement == 0.5
    assert found.kl > 0
    assert Sensitivity.from_json("key", found.to_json()) == found


def test_variants_hurry_when_the_deadline_comes_near(
    model: Model, data: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("onnxq.sensitivity.engine.time.monotonic", lambda: float(next(clock)))
    more = Samples("x", np.concatenate([data.array] * 4))
    layers = find_layers(model)
    variants = [Variant.of(layer.name, choice("gse4")) for layer in layers]
    exact = Settings(precision=0.0)
    found = measure_sensitivities(model, layers, more, variants, exact, deadline=5.0)
    assert 0 < len(found) < len(variants)
    assert all(entry.samples < 4 * N for entry in found.values())
    relaxed = measure_sensitivities(model, layers, more, variants, exact, deadline=9_000.0)
    assert all(entry.samples == 4 * N for entry in relaxed.values())
