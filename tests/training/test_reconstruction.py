"""Rounding by blocks: against enumeration, its guard, and what it leaves alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner

from onnxq.cli import cli
from onnxq.rounding import DataRounder
from onnxq.rounding.blocks import blocks_of
from onnxq.rounding.replay import Replay
from onnxq.training import BlockRounder
from passes.core.base import Context
from passes.core.errors import UserError
from passes.formats import format_of
from passes.formats.weights import encode_layer
from passes.graph.boundary import import_graph
from passes.graph.layers import graph_layers
from passes.graph.model import Model, save
from passes.placement.plan import Plan
from passes.policy import Policy, Scheme
from passes.quantize import Quantize
from passes.rounding.task import RoundedLayer, RoundingTask
from passes.rounding.tasks import rounding_tasks
from tests.nets import Net, Samples, feeds, run, tensors
from tests.onnxq.test_rounding_replay import branching, changed, tasks_of

pytest.importorskip("torch")
from onnxq.training.soft_rounding import learn_block

Array = npt.NDArray[Any]
Layers = list[tuple[RoundingTask, RoundedLayer]]


def two_layers(seed: int) -> Model:
    """x -> MatMul -> Relu -> MatMul: 12 weights, one block."""
    net, rng = Net(), np.random.default_rng(seed)
    x = net.input("x", ["N", 2])
    first = net.add("MatMul", x, net.constant(rng.normal(size=(2, 3)).astype(np.float32), "w1"))
    second = net.constant(rng.normal(size=(3, 2)).astype(np.float32), "w2")
    return net.model(net.add("MatMul", net.add("Relu", first), second))


def tasks_for(model: Model, weights: str) -> list[RoundingTask]:
    graph = import_graph(model)
    found = graph_layers(graph)
    policy = Policy.uniform([layer for layer, _, _ in found], Scheme.parse(weights))
    return rounding_tasks(graph, found, Plan.of(policy), {}, Context(), "brecq")


def error(model: Model, values: Sequence[Array], x: Array) -> float:
    """Mean squared error of the output of `two_layers` with these weights."""
    held = [onnx.numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer]
    found, wanted = (np.maximum(x @ one, 0) @ other for one, other in (values, held))
    return float(np.mean(np.square(found - wanted)))


def moved(task: RoundingTask, held: RoundedLayer) -> list[Array]:
    """A layer's values with every weight as it is, or a step nearer to what it was: all combinations."""
    rows, axis = held.encoded.rows, task.layer.channel_axis
    step = np.broadcast_to(rows.scale, rows.codes.shape)
    wanted = np.moveaxis(task.array, axis, 0).reshape(step.shape)
    toward = np.clip(rows.codes + np.sign(wanted - rows.codes * step), -4, 3) - rows.codes
    choices = itertools.product((0, 1), repeat=step.size)
    every = ((rows.codes + toward * np.reshape(choice, step.shape)) * step for choice in choices)
    return [np.moveaxis(values, 0, axis) for values in every]


def decoded(tasks: Sequence[RoundingTask], found: Mapping[str, RoundedLayer]) -> list[Array]:
    return [found[task.layer.name].encoded.decoded for task in tasks]


def test_learned_near_the_best_choice_in_a_block_by_enumeration() -> None:
    """From plain rounding, three quarters of the way to the best of all combinations of neighbours."""
    before = after = best = 0.0
    for seed in range(4):
        model, x = two_layers(seed), np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)
        tasks = tasks_for(model, "int3:channel")
        (block,) = blocks_of(model, tasks)
        replay = DataRounder(Samples("x", x), threads=1).replay(model, block[:1], to_end=True)
        next(iter(replay))
        plain = [
            (task, RoundedLayer(encode_layer(task.layer, task.array, task.scheme), None)) for task in block
        ]
        wanted = next(replay.ahead())
        first = error(model, [held.encoded.decoded for _, held in plain], x)
        part = replay.part(*plain)
        chunk = {0: (replay.read(0), wanted)}.__getitem__
        learned = learn_block(part, plain, chunk, [0], first, 800, seed)
        found = [held.encoded.decoded for _, held in learned]
        every = [moved(task, held) for task, held in plain]
        for values, choices in zip(found, every, strict=True):
            assert any(np.allclose(values, choice, atol=1e-6) for choice in choices)
        best += min(error(model, pair, x) for pair in itertools.product(*every))
        before, after = before + first, after + error(model, found, x)
    assert after - best <= 0.25 * (before - best)


def test_blocks_end_where_the_network_is_one_tensor_wide() -> None:
    model = branching()
    names = [[task.layer.name for task in block] for block in blocks_of(model, tasks_of(model))]
    # stem's output is added behind project, left and right read one tensor: neither pair is ever cut.
    assert names == [["stem", "depthwise", "project"], ["left", "right", "head"]]


@pytest.mark.parametrize("weights", ["gse3:block8", "uint3:channel", "int3:block8", "tcq3"])
def test_whole_networks(weights: str) -> None:
    """Repeatable; valid; every layer says what became of its block; a trellis is left alone."""
    model = branching()
    x = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    rounder = DataRounder(Samples("x", x), threads=1)
    step = Quantize(weights=weights, activations="float", rounding="brecq")
    seen: list[tuple[int, int]] = []
    told = BlockRounder(rounder, 60, lambda done, total: seen.append((done, total)))
    results = [step(model, Context(rounder=told)) for _ in range(2)]
    onnx.checker.check_model(results[0].model.proto, full_check=True)
    assert results[0].model.proto == results[1].model.proto
    assert seen[:2] == [(1, 2), (2, 2)]
    notes = [note for note in results[0].notes if "error of its block's output" in note.reason]
    assert len(notes) == (0 if weights == "tcq3" else 6)
    if weights == "tcq3":
        alone = replace(step, rounding="gptq")(model, Context(rounder=rounder)).model
        for one, other in zip(run(alone, {"x": x}), run(results[0].model, {"x": x}), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_block_that_got_no_better_stays() -> None:
    model = branching()
    x = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    layers = DataRounder(Samples("x", x), threads=1)
    tasks = tasks_for(model, "int4:channel")
    # Learning of one step moves weights to where their float values are nearest: worse than what was there.
    found = BlockRounder(layers, steps=1)(model, tasks)
    start = layers(model, [replace(task, method="adaround") for task in tasks])
    assert all("kept as it was" in held.note for held in found.values())
    for one, other in zip(decoded(tasks, found), decoded(tasks, start), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_torch_does_not_know_is_told_and_left() -> None:
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    y = net.add("Selu", net.conv(x, 3, 4, name="first"))
    model = net.model(net.conv(y, 4, 4, name="second"))
    data = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    rounder = BlockRounder(DataRounder(Samples("x", data), threads=1), 10)
    found = rounder(model, tasks_for(model, "int4:channel"))
    assert all("Selu" in held.note for held in found.values())


def test_the_layers_rounder_alone_refuses() -> None:
    model = branching()
    rounder = DataRounder(Samples("x", feeds(model)["x"]), threads=1)
    with pytest.raises(UserError, match=r"learns in torch: .*BlockRounder"):
        rounder(model, tasks_for(model, "int4:channel"))


def test_command(tmp_path: Path) -> None:
    save(branching(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32))
    line = ["quantize", str(tmp_path / "net.onnx"), "--weights", "int4", "--activations", "float"]
    line += ["--rounding", "brecq", "--brecq-steps", "20", "--data", str(tmp_path / "x.npy"), "--explain"]
    done = CliRunner().invoke(cli, [*line, "-o", str(tmp_path / "out.onnx")])
    assert done.exit_code == 0, done.output
    assert "error of its block's output on held-out data times" in done.output
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_layers_behind_a_learned_block_see_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = branching()
    x = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)

    class Blank(BlockRounder):
        """Learns that all weights of the first block are 0."""

        def better(self, replay: Replay, before: Layers, seed: int) -> Layers:
            if seed:
                return before
            kinds = [format_of(task.scheme) for task, _ in before]
            return [
                (
                    task,
                    replace(held, encoded=kind.recoded(held.encoded, task.array, task.scheme, zeros(held))),
                )
                for kind, (task, held) in zip(kinds, before, strict=True)
            ]

    def zeros(held: RoundedLayer) -> Array:
        return np.zeros(held.encoded.rows.codes.shape)

    seen: list[Array] = []
    moments = DataRounder._moments

    def watched(self: DataRounder, replay: Replay, task: RoundingTask, *rest: Any, **more: Any) -> Any:
        if task.layer.name == "left":
            seen.extend(rounded for _, rounded in replay.inputs("sum_out"))
        return moments(self, replay, task, *rest, **more)

    monkeypatch.setattr(DataRounder, "_moments", watched)
    tasks = tasks_of(model)
    found = Blank(DataRounder(Samples("x", x), threads=1))(model, [replace(t, method="brecq") for t in tasks])
    first = {name: found[name] for name in ("stem", "depthwise", "project")}
    wanted = tensors(changed(model, tasks, first), ["sum_out"], {"x": x})["sum_out"]
    np.testing.assert_allclose(np.concatenate(seen), wanted, atol=1e-5)
