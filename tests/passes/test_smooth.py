"""Smooth: float-equivalent, counted truthfully, idempotent, and worth it."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from passes.core.base import PassResult
from passes.graph.boundary import import_graph
from passes.graph.editing import consumers, producer, values
from passes.graph.model import Model, check
from passes.quantize import Quantize
from passes.smooth import SMOOTH_KEY, Smooth
from tests.nets import Array, Net, apply, feeds, run, sqnr


def _uneven(net: Net, *shape: int, decades: float = 1.0) -> str:
    """A weight whose channels spread over so many decades."""
    array = net.rng.normal(0, 0.5, shape) * 10 ** np.linspace(0, -decades, shape[0]).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    return net.constant(array.astype(np.float32))


def _conv(
    net: Net,
    x: str,
    cin: int,
    cout: int,
    k: int = 3,
    *,
    groups: int = 1,
    decades: float = 1.0,
    name: str = "",
) -> str:
    bias = net.constant(net.rng.normal(0, 0.1, cout).astype(np.float32))
    pads = [k // 2] * 4
    return net.add(
        "Conv",
        x,
        _uneven(net, cout, cin // groups, k, k, decades=decades),
        bias,
        name=name,
        group=groups,
        pads=pads,
    )


def separable(act: str = "relu", decades: float = 1.0) -> Model:
    """Expand, depthwise, project, depthwise, project."""
    net = Net()
    y = net.input("x", ["N", 4, 8, 8])
    for index, width in enumerate((4, 6)):
        y = net.activation(_conv(net, y, width, 12, 1, name=f"expand{index}", decades=0.5), act)
        y = net.activation(_conv(net, y, 12, 12, groups=12, decades=decades, name=f"depthwise{index}"), act)
        y = _conv(net, y, 12, 6, 1, name=f"project{index}", decades=0.5)
    return net.model(y)


def two_readers() -> Model:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = _conv(net, x, 4, 4, groups=4)
    return net.model(net.add("Add", net.add("Relu", y), _conv(net, y, 4, 4, 1)))


def graph_output() -> Model:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = _conv(net, x, 4, 4, groups=4)
    return net.model(y, _conv(net, y, 4, 4, 1))


def shared_weight() -> Model:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    w, b = _uneven(net, 4, 1, 3, 3), net.constant(np.arange(4, dtype=np.float32))
    y = net.add("Conv", net.add("Conv", x, w, b, group=4, pads=[1] * 4), w, b, group=4, pads=[1] * 4)
    return net.model(net.add("Mul", y, net.add("Reshape", b, net.constant(np.asarray([1, 4, 1, 1])))))


def channel_mul() -> Model:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    y = net.add("Relu", _conv(net, x, 4, 4, groups=4))
    return net.model(
        net.add("Mul", y, net.constant(np.asarray([1, -2, 3, 4], np.float32).reshape(1, 4, 1, 1)))
    )


NETS: dict[str, Callable[[], Model]] = {
    "relu": separable,
    "relu6": lambda: separable("relu6"),
    "linear": lambda: separable(""),
    "two_readers": two_readers,
    "graph_output": graph_output,
    "shared_weight": shared_weight,
    "channel_mul": channel_mul,
}


def _counts(result: PassResult) -> list[int]:
    """absorbed, inserted, skipped, as the summary says."""
    return [int(word) for word in result.notes[-1].reason.replace(",", "").split() if word.isdigit()]


def _close(before: list[Array], after: list[Array]) -> None:
    for left, right in zip(before, after, strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-5, atol=1e-5 * float(np.abs(left).max()))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("site", ["output", "input"])
@pytest.mark.parametrize("layers", [("depthwise",), ("all",)])
@pytest.mark.parametrize("absorb", ["auto", "never"])
def test_equivalent_in_float(name: str, site: str, layers: tuple[str, ...], absorb: str) -> None:
    model = NETS[name]()
    step = Smooth(site=site, layers=layers, absorb=absorb)  # type: ignore[arg-type]
    result = step(model)
    assert result.modified
    check(result.model)
    _close(run(model, optimise=False), run(result.model, optimise=False))
    assert [v.name for v in result.model.proto.graph.output] == [v.name for v in model.proto.graph.output]
    told = [note.kind for note in result.notes]
    absorbed, inserted, skipped = _counts(result)
    assert told.count("applied") == absorbed + inserted
    assert told.count("skipped") == skipped
    muls = [sum(node.op_type == "Mul" for node in m.proto.graph.node) for m in (model, result.model)]
    assert muls[1] - muls[0] == inserted
    if absorb == "never":
        assert absorbed == 0
    again = step(result.model)
    assert not again.modified
    assert _counts(again) == [0, 0, absorbed + inserted + skipped]


@pytest.mark.parametrize(
    ("name", "site", "layers", "counts"),
    [
        ("relu", "output", ("depthwise",), [2, 0, 0]),  # into the projections behind them
        ("relu6", "output", ("depthwise",), [0, 2, 0]),  # Clip is not homogeneous
        ("linear", "output", ("depthwise",), [2, 0, 0]),
        ("relu", "output", ("all",), [0, 6, 0]),  # every neighbour is smoothed itself
        ("relu", "input", ("depthwise",), [2, 0, 0]),  # into the expansions before them
        ("relu6", "input", ("depthwise",), [0, 2, 0]),
        ("relu", "input", ("all",), [0, 2, 4]),
        ("two_readers", "output", ("depthwise",), [0, 1, 0]),
        ("graph_output", "output", ("depthwise",), [0, 1, 0]),
        ("channel_mul", "output", ("depthwise",), [1, 0, 0]),
    ],
)
def test_counts(name: str, site: str, layers: tuple[str, ...], counts: list[int]) -> None:
    assert _counts(Smooth(site=site, layers=layers)(NETS[name]())) == counts  # type: ignore[arg-type]


def test_smoothed_weights_are_even() -> None:
    result = Smooth(absorb="never")(separable(decades=2))
    graph = import_graph(result.model)
    for node in graph.nodes:
        if node.op == "Conv" and int(node.attrs["group"]) > 1:
            tops = np.abs(values(node.inputs[1])).max(axis=(1, 2, 3))
            np.testing.assert_allclose(tops, tops.max(), rtol=1e-5)


def test_a_later_run_absorbs_nothing_into_what_is_smooth() -> None:
    model = separable()
    first = Smooth(layers=("project0",), absorb="never")(model).model
    second = Smooth(layers=("depthwise0",))(first)
    assert _counts(second) == [0, 1, 0]
    _close(run(model), run(second.model))
    assert set(json.loads(second.model.metadata[SMOOTH_KEY])) == {"project0", "depthwise0"}


def test_refusals_say_why() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    ones = [net.constant(np.ones(4, np.float32)) for _ in range(4)]
    y = net.add("BatchNormalization", net.conv(x, 4, 4, groups=4, name="before_bn"), *ones)
    y = net.add("Conv", y, net.weight(4, 1, 3, 3), net.input("b", [4]), name="runtime_bias", group=4)
    y = net.add("Conv", y, net.constant(np.zeros((4, 1, 1, 1), np.float32)), name="zero", group=4)
    y = net.add("ConvTranspose", y, net.weight(4, 4, 1, 1), name="up")
    result = Smooth(layers=("all",))(net.model(y))
    assert not result.modified
    reasons = {note.node: note.reason for note in result.notes if note.kind == "skipped"}
    assert reasons.keys() == {"before_bn", "runtime_bias", "zero", "up"}
    for name, word in (
        ("before_bn", "fold"),
        ("runtime_bias", "run time"),
        ("zero", "zero"),
        ("up", "ConvTranspose"),
    ):
        assert word in reasons[name]


def test_no_depthwise_is_told() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    result = Smooth()(net.model(net.conv(x, 4, 4)))
    assert not result.modified
    assert "no depthwise" in result.notes[0].reason


def test_dead_channels_have_a_floor() -> None:
    net = Net()
    x = net.input("x", ["N", 4, 8, 8])
    w = np.ones((4, 1, 3, 3), np.float32) * np.asarray([1, 1e-31, 0, 0.5], np.float32).reshape(4, 1, 1, 1)
    bias = np.asarray([1, 5, -5, 0], np.float32)
    model = net.model(net.add("Conv", x, net.constant(w), net.constant(bias), group=4, pads=[1] * 4))
    result = Smooth()(model).model
    _close(run(model), run(result))
    held = import_graph(result)
    conv = next(node for node in held.nodes if node.op == "Conv")
    assert np.abs(values(conv.inputs[2])).max() <= 5 * 256


@pytest.mark.parametrize("site", ["output", "input"])
def test_per_tensor_weights_gain(site: str) -> None:
    """Depthwise weights over two decades, the data behind them even: one scale loses the small channels."""
    net = Net()
    x = net.input("x", ["N", 12, 8, 8])
    y = _conv(net, x, 12, 12, groups=12, decades=2, name="depthwise")
    model = net.model(net.conv(y, 12, 6, 1, name="project"))
    inputs = {"x": feeds(model)["x"] * 10 ** np.linspace(0, 2, 12).astype(np.float32).reshape(1, 12, 1, 1)}
    reference = run(model, inputs)[0]
    step = Quantize(weights="int8", activations="float", exclude=("project",))
    raw = sqnr(reference, run(apply(step, model, inputs).model, inputs)[0])
    smoothed = Smooth(site=site, absorb="never")(model).model  # type: ignore[arg-type]
    better = sqnr(reference, run(apply(step, smoothed, inputs).model, inputs)[0])
    channel = Quantize(activations="float", exclude=("project",))
    wanted = sqnr(reference, run(apply(channel, model, inputs).model, inputs)[0])
    assert better == pytest.approx(wanted, abs=0.5)
    assert better > raw + 6


@pytest.mark.parametrize("site", ["output", "input"])
@pytest.mark.parametrize("layers", [("depthwise",), ("all",)])
@pytest.mark.parametrize("act", ["relu", "relu6", ""])
def test_no_pair_between_a_conv_and_its_mul(site: str, layers: tuple[str, ...], act: str) -> None:
    model = separable(act)
    smoothed = Smooth(site=site, layers=layers, absorb="never")(model).model  # type: ignore[arg-type]
    result = apply(Quantize(weights="int8"), smoothed).model
    muls = [node for node in import_graph(result).nodes if node.op == "Mul"]
    assert muls
    for node in muls:
        if site == "output":
            made = producer(node.inputs[0])
            assert made is not None
            assert made.op == "Conv"
        else:
            assert [reader.op for reader in consumers(node.outputs[0])] == ["Conv"]
    assert sqnr(run(model)[0], run(result)[0]) > 20
