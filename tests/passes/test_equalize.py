"""Cross-layer equalization: same function, even ranges, refusals by rule."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from passes.core.recipe import parse_recipe
from passes.equalize import Equalize
from passes.graph.model import Model
from passes.quantize import Quantize
from tests.nets import Array, Net, apply, feeds, run, sqnr


def uneven_weight(net: Net, *shape: int) -> Array:
    """A weight whose output channels differ by orders of magnitude."""
    spread = np.exp(net.rng.normal(0, 1.5, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(net.rng.normal(size=shape) * spread, np.float32)


def uneven(net: Net, *shape: int) -> str:
    return net.constant(uneven_weight(net, *shape))


def chain(act: str, *, middle: str = "") -> Model:
    """Expand, depthwise, project, with `act` between, and `middle` in its place behind the first."""
    net = Net()
    x = net.input("x", ["N", 3, 6, 6])
    weight = uneven_weight(net, 8, 3, 1, 1)
    # As uneven as the weights, so that the bias does not decide any scale (rule 5).
    bias = net.constant(0.5 * np.abs(weight).max((1, 2, 3)))
    a = net.add("Conv", x, net.constant(weight), bias, name="expand")
    if middle == "prelu":
        a = net.add("PRelu", a, net.constant(np.full((8, 1, 1), 0.2, np.float32)))
    elif middle == "leaky":
        a = net.add("LeakyRelu", a, alpha=0.1)
    else:
        a = net.activation(a, act)
    b = net.add("Conv", a, uneven(net, 8, 1, 3, 3), group=8, pads=[1] * 4, name="depthwise")
    c = net.add("Conv", net.activation(b, act), uneven(net, 4, 8, 1, 1), name="project")
    return net.model(c)


def ranges(model: Model) -> tuple[Array, Array, Array]:
    held = {item.name: numpy_helper.to_array(item) for item in model.proto.graph.initializer}
    weight = {
        node.name: np.abs(held[node.input[1]]) for node in model.proto.graph.node if node.op_type == "Conv"
    }
    return (
        weight["expand"].max((1, 2, 3)),
        weight["depthwise"].max((1, 2, 3)),
        weight["project"].max((0, 2, 3)),
    )


@pytest.mark.parametrize("middle", ["", "prelu", "leaky"])
@pytest.mark.parametrize("act", ["", "relu", "relu6"])
def test_same_function_and_even_ranges(act: str, middle: str) -> None:
    model = chain(act, middle=middle)
    result = Equalize()(model)
    assert result.modified
    inputs = {"x": 5 * feeds(model)["x"]}
    wanted = run(model, inputs)[0]
    np.testing.assert_allclose(
        run(result.model, inputs)[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
    )
    first, second, third = ranges(result.model)
    np.testing.assert_allclose(first, second, rtol=1e-2)
    np.testing.assert_allclose(second, third, rtol=1e-2)
    assert not Equalize()(result.model).modified


def test_clip_becomes_a_bound_by_channel_or_is_kept() -> None:
    model = chain("relu6")
    ops = [node.op_type for node in Equalize()(model).model.proto.graph.node]
    assert (ops.count("Min"), ops.count("Clip")) == (2, 0)
    kept = Equalize(clip="keep")(model)
    assert not kept.modified
    assert {note.node for note in kept.notes if note.kind == "refused"} == {"expand", "depthwise"}


def test_dead_channels_stay_as_they_are() -> None:
    net = Net()
    x = net.input("x", ["N", 3, 4, 4])
    weight = net.rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    weight[0] = 0
    other = net.rng.normal(size=(2, 4, 1, 1)).astype(np.float32) * 9
    other[:, 1] = 0
    y = net.add("Conv", net.add("Conv", x, net.constant(weight, "a"), name="one"), net.constant(other, "b"))
    result = Equalize()(net.model(y)).model
    held = {item.name: numpy_helper.to_array(item) for item in result.proto.graph.initializer}
    np.testing.assert_array_equal(held["a_equalized"][:2], weight[:2])
    assert np.isfinite(held["b_equalized"]).all()


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_a_channel_that_lives_by_its_bias_does_not_widen_the_activations(act: str) -> None:
    net = Net()
    x = net.input("x", ["N", 3, 6, 6])
    weight = net.rng.normal(size=(16, 3, 1, 1)).astype(np.float32)
    weight[0] = 1e-5
    bias = net.rng.normal(size=16).astype(np.float32)
    bias[0] = 1
    a = net.activation(net.add("Conv", x, net.constant(weight), net.constant(bias), name="one"), act)
    y = net.add("Conv", a, net.weight(8, 16, 1, 1), name="two")
    model = net.model(y)
    wanted = run(model)[0]
    result = Equalize()(model)
    assert result.modified
    plain, even = (
        sqnr(wanted, run(apply(Quantize("int8:tensor"), given).model, feeds(model))[0])
        for given in (model, result.model)
    )
    assert even > plain - 3  # dB; without the bias in r_A it is 20 dB below


def test_clip_bounds_of_one_element() -> None:
    net = Net()
    x = net.input("x", ["N", 3, 6, 6])
    a = net.add("Conv", x, uneven(net, 8, 3, 1, 1), name="one")
    bounds = (net.constant(np.array([value], np.float32)) for value in (0, 6))
    y = net.add("Conv", net.add("Clip", a, *bounds), uneven(net, 4, 8, 1, 1), name="two")
    model = net.model(y)
    result = Equalize()(model)
    assert result.modified
    np.testing.assert_allclose(run(result.model)[0], run(model)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["two readers", "output", "groups", "sigmoid", "low clip"])
def test_what_is_not_legal_is_left_alone(case: str) -> None:
    net = Net()
    x = net.input("x", ["N", 4, 4, 4])
    a = net.add("Conv", x, uneven(net, 4, 4, 1, 1), name="one")
    b = a
    if case == "sigmoid":
        b = net.add("Sigmoid", a)
    elif case == "low clip":
        b = net.add("Clip", a, net.scalar(-1), net.scalar(6))
    groups = 2 if case == "groups" else 1
    y = net.add("Conv", b, uneven(net, 4, 4 // groups, 1, 1), group=groups, name="two")
    outputs = [net.add("Add", y, a)] if case == "two readers" else [y]
    model = net.model(*outputs, *([a] if case == "output" else []))
    result = Equalize()(model)
    assert not result.modified
    assert result.model is model


def test_text_form() -> None:
    assert str(parse_recipe("equalize{clip=keep}")) == "equalize{clip=keep}"
    assert str(Equalize()) == "equalize"
