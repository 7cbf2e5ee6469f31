"""The two streams: what a layer sees is what a full run of the changed model gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq.rounding import DataRounder
from onnxq.rounding.replay import Replay
from onnxq.rounding.steps import cut_steps
from passes.formats.weights import EncodedWeight, encode_layer
from passes.graph.boundary import import_graph
from passes.graph.editing import values
from passes.graph.layers import graph_layers, weight_index
from passes.graph.model import Model
from passes.policy import Scheme
from passes.rounding.task import RoundedLayer, RoundingTask
from tests.nets import Net, Samples, tensors


def branching() -> Model:
    """A residual block, a depthwise layer, a dead end and a constant node; two layers read one tensor."""
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    a = net.conv(x, 3, 8, act="relu", name="stem")
    b = net.conv(a, 8, 8, groups=8, act="relu", name="depthwise")
    c = net.conv(b, 8, 8, k=1, bias=False, name="project")
    d = net.add("Add", c, a, name="sum")
    net.add("Sigmoid", d, name="dead_end")
    e = net.conv(d, 8, 4, name="left")
    f = net.conv(d, 8, 4, stride=1, name="right")
    g = net.add("Concat", e, f, axis=1)
    pooled = net.add("Flatten", net.add("GlobalAveragePool", g))
    y = net.add(
        "Gemm", pooled, net.weight(8, 5), net.constant(np.ones(5, np.float32)), name="head", alpha=0.5
    )
    return net.model(y)


def tasks_of(model: Model, scheme: str = "int4:channel") -> list[RoundingTask]:
    found = []
    for layer, node, _ in graph_layers(import_graph(model)):
        index = weight_index(node)
        assert index is not None
        array = values(node.inputs[index])
        found.append(
            RoundingTask(
                layer,
                node.outputs[0].name,
                array,
                Scheme.parse(scheme),
                np.zeros(array.shape[layer.channel_axis]),
            )
        )
    return found


def changed(model: Model, tasks: Sequence[RoundingTask], found: dict[str, RoundedLayer]) -> Model:
    """The model with weights and biases put in by name."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for task in tasks:
        if task.layer.name not in found:
            continue
        node = next(node for node in proto.graph.node if node.output[0] == task.output)
        held = found[task.layer.name]
        assert held.bias is not None
        for index, array in enumerate((held.encoded.decoded, held.bias), start=1):
            name = f"{task.output}_{index}"
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
            if len(node.input) > index:
                node.input[index] = name
            else:
                node.input.append(name)
        for attribute in node.attribute:
            if attribute.name == "alpha":
                attribute.f = 1.0
    return Model(proto)


@pytest.mark.parametrize("budget", [0, 2**30], ids=["on disk", "in memory"])
def test_inputs_are_those_of_a_full_run(budget: int) -> None:
    model = branching()
    tasks = tasks_of(model)
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    feeds = (batch.inputs for batch in Samples("x", x).batches(2))
    replay = Replay(model, tasks, feeds, 1, budget)
    found: dict[str, RoundedLayer] = {}
    for task, node in replay:
        now = changed(model, tasks, found)
        wanted = [tensors(at, [node.input[0]], {"x": x})[node.input[0]] for at in (model, now)]
        seen = [np.concatenate(parts) for parts in zip(*replay.inputs(node.input[0]), strict=True)]
        for one, other in zip(seen, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        added = replay.added(task)
        assert added == ("relu1_out" if task.layer.name == "project" else None)
        encoded = encode_layer(task.layer, task.array, task.scheme)
        held = RoundedLayer(encoded, np.full(task.layer.out_channels, 0.1))
        if task.layer.name != "left":  # a layer that nobody rounds stays as it is
            found[task.layer.name] = held
            replay.rounded((task, held))
    assert len(found) == 5


def test_only_what_is_alive_is_kept() -> None:
    model = branching()
    tasks = tasks_of(model)
    steps = cut_steps(model, [task.output for task in tasks])
    assert [step.reads for step in steps[:3]] == [(), ("x",), ("relu1_out",)]
    assert "dead_end" not in {node.name for step in steps for node in step.nodes}
    alive: set[str] = {"x"}
    for step in steps:
        assert set(step.reads) <= alive
        alive |= set(step.writes)
        alive -= set(step.last_use)
    assert len(alive) == 1


@pytest.mark.parametrize(
    "scheme", ["gse4:block32", "gse3:block8", "int4:channel", "int3:channel", "int8:tensor", "tcq3"]
)
def test_each_layer_is_nearer_to_float_than_with_plain_rounding(scheme: str) -> None:
    """The sum over positions of the squared output error, on the data that it was rounded on."""
    model = branching()
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    tasks = tasks_of(model, scheme)
    for task in tasks:
        rounder = DataRounder(Samples("x", x), damping=0.01, threads=1)
        found = rounder(model, [task])
        plain = RoundedLayer(encode_layer(task.layer, task.array, task.scheme), task.bias)
        outputs = []
        for held in (RoundedLayer(_exact(task), task.bias), found[task.layer.name], plain):
            now = changed(model, [task], {task.layer.name: held})
            outputs.append(tensors(now, [task.output], {"x": x})[task.output])
        errors = [float(np.square(output - outputs[0]).sum()) for output in outputs[1:]]
        assert errors[0] <= errors[1] * 1.0001


def _exact(task: RoundingTask) -> EncodedWeight:
    encoded = encode_layer(task.layer, task.array, task.scheme)
    return dataclasses.replace(encoded, decoded=np.asarray(task.array, np.float32))


def test_bias_range_of_int32_is_kept_when_the_bias_moves() -> None:
    model = branching()
    task = dataclasses.replace(tasks_of(model, "int8:channel")[0], input_scale=1e-9)
    x = np.random.default_rng(0).normal(3, 1, size=(8, 3, 8, 8)).astype(np.float32)
    task = dataclasses.replace(task, bias=np.full(8, 5.0))
    rounder = DataRounder(Samples("x", x), damping=0.1, threads=1)
    held = rounder(model, [task])["stem"]
    assert held.bias is not None
    assert (np.abs(held.bias) / (1e-9 * held.encoded.scale.astype(np.float64)) < 2.0**31).all()


def test_plain_target_where_nothing_was_seen_of_a_channel() -> None:
    """A constant input has no covariance: rounding to nearest, the bias takes the rest."""
    model = branching()
    task = tasks_of(model, "int4:channel")[0]
    ones = np.ones((4, 3, 8, 8), np.float32)
    rounder = DataRounder(Samples("x", ones), damping=0.1, threads=1)
    held = rounder(model, [task])["stem"]
    assert held.bias is not None
    plain = encode_layer(task.layer, task.array, task.scheme)
    # Borders are padded with zeros, so that only the middle of the kernel is constant.
    assert np.isfinite(held.bias).all()
    assert held.encoded.codes.shape == plain.codes.shape
