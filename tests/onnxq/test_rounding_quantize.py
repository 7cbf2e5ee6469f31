"""quantize{rounding=gptq} from end to end: files that run, errors that shrink, bits that stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import onnxq as oq
from onnxq.evaluation import load_session
from onnxq.rounding.moments import Accumulator
from onnxq.rounding.rounder import DAMPING, DataRounder
from passes.core.base import Context, PassResult
from passes.core.errors import DataError, PolicyError, UnsupportedModelError
from passes.formats import format_of
from passes.formats.base import RowTask
from passes.graph.layers import find_layers
from passes.graph.model import Model, serialize
from passes.policy import Scheme
from passes.quantize import Quantize
from passes.rounding.task import Moments, RoundedLayer, RoundingTask, choose_dampings
from tests.nets import Net, Samples, ranges_of, run, tensors

Array = npt.NDArray[Any]


def network(dtype: Any = np.float32) -> Model:
    """Stem, depthwise, grouped, strided, a residual, a classifier."""
    net = Net(dtype=dtype)
    x = net.input("x", ["N", 3, 12, 12])
    a = net.conv(x, 3, 16, act="relu6", stride=2, name="stem")
    b = net.conv(a, 16, 16, groups=16, act="relu6", name="depthwise")
    c = net.add("Add", net.conv(b, 16, 16, k=1, bias=False, name="project"), a)
    d = net.conv(c, 16, 32, groups=4, act="relu", name="grouped")
    flat = net.add("Flatten", net.add("GlobalAveragePool", d))
    y = net.add("Gemm", flat, net.weight(32, 10), name="head")
    return net.model(y)


def images(count: int = 48, seed: int = 0) -> Array:
    """Smooth pictures, so that neighbours are correlated as they are in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 4, 4)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, 3, 3), np.float32)) + 0.2 * rng.normal(
        size=(count, 3, 12, 12)
    ).astype(np.float32)


def quantized(model: Model, x: Array, damping: float = DAMPING, **options: Any) -> PassResult:
    settings: dict[str, Any] = {"activations": "float", "rounding": "gptq"} | options
    context = Context(
        ranges=ranges_of({"x": x}), rounder=DataRounder(Samples("x", x), damping=damping, threads=1)
    )
    return Quantize(**settings)(model, context)


def error(model: Model, other: Model, x: Array) -> float:
    one, two = (load_session(m, threads=1).run(None, {"x": x})[0].astype(np.float64) for m in (model, other))
    return float(np.square(one - two).mean())


@pytest.mark.parametrize(
    "weights",
    [
        "gse4:block32",
        "gse3:block8",
        "int4:channel",
        "int4:block16",
        "int3:channel",
        "int4:tensor",
        "uint4:channel:asym",
        "int8:tensor",
        "tcq2",
        "tcq4",
    ],
)
def test_nearer_to_float_than_nearest_on_other_images(weights: str) -> None:
    model, x, other = network(), images(), images(seed=1)
    held = quantized(model, x, weights=weights).model
    plain = quantized(model, x, weights=weights, rounding="nearest").model
    assert error(model, held, other) < (1.0 if weights.startswith("int8") else 0.8) * error(
        model, plain, other
    )
    # Stock ONNX Runtime, with nothing but the file, without the optimisation that quantizes float layers.
    ours = load_session(held, threads=1).run(None, {"x": other})[0]
    np.testing.assert_allclose(run(held, {"x": other}, optimise=False)[0], ours, atol=1e-4)


@pytest.mark.parametrize("weights", ["uint4:channel", "int3:channel:asym", "uint3:block8", "uint4:tensor"])
def test_narrower_ranges_are_tried_for_asymmetric_weights(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, other = network(), images(), images(seed=1)
    found = error(model, quantized(model, x, weights=weights).model, other)
    monkeypatch.setattr("passes.formats.integer._RANGES", ((1.0, 1.0),))
    assert found < 0.97 * error(model, quantized(model, x, weights=weights).model, other)


@pytest.mark.parametrize("weights", ["uint4:channel", "int3:channel:asym", "uint8:tensor", "uint4:block16"])
def test_asymmetric_scales_to_try_begin_with_the_plain_ones(weights: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.exponential(size=(6, 32)).astype(np.float32) - 0.4
    array[0], array[1] = np.abs(array[0]), 0  # one side of zero alone; nothing at all
    scheme = Scheme.parse(weights)
    form = format_of(scheme).grid(RowTask(array, 0, scheme, array[np.newaxis].astype(np.float64)))
    grid, rows = form.grid(), form.plain.rows
    np.testing.assert_array_equal(grid.scale[0, 0], rows.scale)
    np.testing.assert_array_equal(grid.zero[0, 0], rows.zero_point)
    assert (grid.zero >= grid.lowest).all()
    assert (grid.zero <= grid.highest).all()
    assert (grid.scale > 0).all()


def test_same_bytes_every_time_and_with_any_budget() -> None:
    model, x = network(), images(24)
    made = [
        Quantize(weights="int4:channel", activations="float", rounding="gptq")(
            model, Context(rounder=DataRounder(Samples("x", x), threads=1, budget=budget))
        ).model
        for budget in (2**28, 2**28, 0)
    ]
    assert len({serialize(model) for model in made}) == 1


@pytest.mark.parametrize("count", [8, 48], ids=["too few to hold any out", "one chunk in five"])
def test_damping_chosen_on_held_out_images(count: int) -> None:
    model, x, other = network(), images(count), images(seed=1)
    rounder = DataRounder(Samples("x", x), damping=None, threads=1)
    step = Quantize(weights="int3:channel", activations="float", rounding="gptq")
    held = step(model, Context(rounder=rounder)).model
    plain = quantized(model, x, weights="int3:channel", rounding="nearest").model
    assert error(model, held, other) < error(model, plain, other)


@pytest.mark.parametrize("activations", ["uint8", "int8", "uint8:dynamic", "gse8:block16"])
@pytest.mark.parametrize("weights", ["int8:tensor", "int4:channel"])
def test_with_quantized_activations(activations: str, weights: str) -> None:
    model, x = network(), images()
    held = quantized(model, x, weights=weights, activations=activations).model
    plain = quantized(model, x, weights=weights, activations=activations, rounding="nearest").model
    assert error(model, held, x) < error(model, plain, x)


def test_int32_biases_of_layers_that_had_none() -> None:
    model, x = network(), images()
    held = quantized(model, x, weights="int8:channel", activations="uint8").model
    node = next(node for node in held.proto.graph.node if node.name == "project")
    maker = next(other for other in held.proto.graph.node if other.output[0] == node.input[2])
    codes = next(item for item in held.proto.graph.initializer if item.name == maker.input[0])
    assert maker.op_type == "DequantizeLinear"
    assert codes.data_type == onnx.TensorProto.INT32


def test_means_of_outputs_are_those_of_float() -> None:
    model, x = network(), images()
    held = quantized(model, x, weights="int3:channel").model
    # The layer in front of the Add also makes up for the mean of the other summand.
    names = [node.output[0] for node in model.proto.graph.node if node.op_type in ("Add", "Gemm")]
    before, after = (tensors(m, names, {"x": x}) for m in (model, held))
    for name in names:
        axes = tuple(i for i in range(before[name].ndim) if i != 1)
        np.testing.assert_allclose(before[name].mean(axes), after[name].mean(axes), atol=0.02)


def test_biases_alone() -> None:
    model, x = network(), images()
    plain, held = (
        quantized(model, x, weights="int3:channel", rounding=rounding).model
        for rounding in ("nearest", "bias")
    )
    codes = [
        {item.name: item.raw_data for item in made.proto.graph.initializer if "quantized" in item.name}
        for made in (plain, held)
    ]
    assert codes[0] == codes[1]
    before, after = (tensors(m, ["head_out"], {"x": x})["head_out"] for m in (model, held))
    np.testing.assert_allclose(before.mean(0), after.mean(0), atol=0.02)


def test_policy_is_obeyed() -> None:
    model, x = network(), images(16)
    held = quantized(model, x, weights="int4:channel", exclude=("stem", "op:Gemm")).model
    kept = {node.name: node for node in held.proto.graph.node}
    before = {node.name: node for node in model.proto.graph.node}
    for name in ("stem", "head"):
        assert list(kept[name].input) == list(before[name].input)
    assert kept["project"].input[1] != before["project"].input[1]


def test_float16_weights() -> None:
    model, x = network(np.float16), images(16).astype(np.float16)
    held = quantized(model, x, weights="int4:channel").model
    plain = quantized(model, x, weights="int4:channel", rounding="nearest").model
    assert error(model, held, x) < error(model, plain, x)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("weights", ["int4:channel", "gse4:block8"])
def test_matrix_products_without_a_bias(left: bool, weights: str) -> None:
    net = Net(opset=21)
    x = net.input("x", ["N", 6, 16])
    if left:
        y = net.add("MatMul", net.weight(5, 6), x, name="product")
    else:
        y = net.add("MatMul", x, net.weight(16, 5), name="product")
    model = net.model(net.add("Relu", y))
    data = np.cumsum(np.random.default_rng(0).normal(size=(40, 6, 16)), axis=1 if left else 2).astype(
        np.float32
    )
    held = quantized(model, data, 0.01, weights=weights).model
    plain = quantized(model, data, weights=weights, rounding="nearest").model
    assert error(model, held, data) < error(model, plain, data)


def test_factors_of_a_gemm() -> None:
    net = Net()
    x = net.input("x", ["N", 16])
    bias = net.constant(np.ones(5, np.float32))
    y = net.add("Gemm", x, net.weight(5, 16), bias, transB=1, alpha=0.5, beta=2.0, name="head")
    z = net.add("Gemm", net.add("Relu", y), net.weight(5, 3), name="last", alpha=3.0)
    model = net.model(z)
    data = np.cumsum(np.random.default_rng(0).normal(size=(64, 16)), axis=1).astype(np.float32)
    held = quantized(model, data, weights="int6:channel").model
    plain = quantized(model, data, weights="int6:channel", rounding="nearest").model
    assert error(model, held, data) < error(model, plain, data)


def test_what_is_left_to_plain_rounding_is_told() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 6, 6])
    y = net.conv(x, 4, 4, name="conv")
    z = net.add("ConvTranspose", y, net.weight(4, 3, 3, 3), name="transposed")
    result = quantized(net.model(z), np.zeros((4, 4, 6, 6), np.float32) + 1, weights="int4:channel")
    reasons = {note.node: note.reason for note in result.notes if "nearest" in note.reason}
    assert list(reasons) == ["transposed"]


def test_a_trellis_is_not_learned_and_that_is_told() -> None:
    model, x = network(), images()
    learned = quantized(model, x, weights="tcq3", rounding="adaround")
    assert sum("not learned" in note.reason for note in learned.notes) == len(find_layers(model))
    plain = quantized(model, x, weights="tcq3").model
    assert serialize(learned.model) == serialize(plain)


def test_without_data_it_is_an_error_of_one_sentence() -> None:
    with pytest.raises(PolicyError, match=r"rounding=gptq needs calibration data; give `data`"):
        Quantize(weights="int4", activations="float", rounding="gptq")(network(), Context())


def test_bad_numbers_are_told_by_layer() -> None:
    x = images(8)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"layer 'stem'.*NaN"):
        quantized(network(), x, weights="int4:channel")


def test_bad_weights_are_told_by_layer() -> None:
    net = Net()
    x = net.input("x", ["N", 3, 12, 12])
    weight = np.full((4, 3, 1, 1), np.nan, np.float32)
    model = net.model(net.add("Conv", x, net.constant(weight, "w"), name="conv"))
    with pytest.raises(UnsupportedModelError, match=r"weight 'w' of conv holds NaN"):
        quantized(model, images(8), weights="int4:channel")


def test_fixed_batch() -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", [4, 3, 12, 12]), 3, 4, name="conv"))
    assert quantized(model, images(8), weights="int4:channel").modified
    with pytest.raises(DataError, match=r"6 samples do not fill the model's batches of 4"):
        quantized(model, images(6), weights="int4:channel")


def test_text_form() -> None:
    step = oq.parse_recipe("quantize{weights=gse4:block32 activations=float rounding=gptq}")
    assert "rounding=gptq" in str(step)
    assert "rounding" not in str(Quantize())


def test_calibrate_lends_the_rounder() -> None:
    x: Array = images(16)
    context = oq.calibrate(Samples("x", x))
    held = Quantize(weights="gse4:block32", activations="float", rounding="gptq")(network(), context)
    assert held.modified


def calls(model: Model, x: Array) -> Sequence[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    rounder = DataRounder(Samples("x", x), threads=1, progress=lambda done, of: seen.append((done, of)))
    Quantize(weights="int4", activations="float", rounding="gptq")(model, Context(rounder=rounder))
    return seen


def test_progress() -> None:
    assert calls(network(), images(8)) == [(done, 5) for done in range(1, 6)]


def test_command_line(tmp_path: Path, invoke: Any, tiny: Path, tiny_data: Path) -> None:
    target = tmp_path / "out.onnx"
    options = [
        "quantize",
        tiny,
        "--weights",
        "int4",
        "--activations",
        "float",
        "--rounding",
        "gptq",
        "-o",
        target,
    ]
    missing = invoke(*options)
    assert missing.exit_code == 2
    assert "--rounding gptq looks at calibration data; give `data`" in missing.stderr
    assert not target.exists()
    made = invoke(*options, "--data", tiny_data)
    assert made.exit_code == 0, made.stderr
    plain = tmp_path / "plain.onnx"
    assert invoke("quantize", tiny, "--weights", "int4", "--activations", "float", "-o", plain).exit_code == 0
    assert target.read_bytes() != plain.read_bytes()
    recipe = "simplify | fold_batchnorm | quantize{weights=int4:channel activations=float rounding=gptq}"
    applied = invoke("apply", recipe, tiny, "-o", tmp_path / "applied.onnx", "--data", tiny_data)
    assert applied.exit_code == 0, applied.stderr


def test_little_data_is_trusted_less() -> None:
    """The target's damping is chosen by the error on new data: the fewer data to fit on, the larger."""
    net = Net()
    y = net.add("Gemm", net.input("x", ["N", 32]), net.weight(32, 8), net.weight(8), name="head")
    taken: list[RoundingTask] = []

    def take(_: Model, tasks: Sequence[RoundingTask]) -> dict[str, RoundedLayer]:
        taken.extend(tasks)
        return {}

    step = Quantize(weights="int3:channel", activations="float", rounding="gptq")
    step(net.model(y), Context(rounder=take))
    rng = np.random.default_rng(0)

    def moments(count: int) -> Moments:
        real = rng.normal(size=(1, 32, count)).astype(np.float32)
        noise = 0.5 * rng.normal(size=real.shape).astype(np.float32)
        sums = Accumulator()
        sums.update(real, real + noise)
        return sums.moments(centred=True)

    new, targets = moments(20_000), (0.01, 0.1, 1.0, 10.0)
    few, many = (choose_dampings(taken[0], moments(n), new, targets, (1.0,)).target for n in (40, 20_000))
    assert many == 0.01 < few
