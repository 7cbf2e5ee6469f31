"""The proof before saving: what is wrong is never written, and what cannot be tried is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper, parser

import onnxq as oq
from onnxq.data.dataset import Batch
from onnxq.proof import Reference, feeds, prove, write_model
from onnxq.proof import rewrites as rewrites_module
from onnxq.proof.running import Overtime, Runner
from passes.core import base
from passes.core.base import Context, GraphPass
from passes.core.errors import InvalidModelError, ProofError
from passes.graph import model as model_module
from passes.graph.editing import values
from passes.graph.model import Model
from tests.nets import Net, Samples

Invoke = Callable[..., Result]


@dataclass(frozen=True)
class Scale(GraphPass):
    """Multiplies the first weight, and claims to keep the function."""

    by: float = 1.0
    name: ClassVar[str] = "scale_weight"
    keeps_function: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: Context) -> bool:
        node = next(node for node in graph.nodes if node.op in ("Conv", "MatMul"))
        tensor = node.inputs[1]
        tensor.values = values(tensor) * np.float32(self.by)
        return True


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pass known to recipes for one test."""
    monkeypatch.setitem(base._REGISTRY, Scale.name, Scale)


def shaped(model: Model, *dims: int | str) -> Model:
    """The model with its first output declared so; -1 for a free dimension."""
    shape = model.proto.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        shape.dim.add(**({"dim_param": dim} if isinstance(dim, str) else {"dim_value": dim}))
    return model


def small() -> Model:
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    y = net.conv(x, 3, 4, act="relu")
    return net.model(net.add("Dropout", y))


def test_a_rewrite_that_changes_the_function_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    made = (oq.Simplify() | Scale(1.001) | oq.Exclude(("first",)))(small()).model
    target = tmp_path / "deep" / "out.onnx"
    with pytest.raises(ProofError, match=r"net\.onnx: 'scale_weight' would change .* differs by 0\.001"):
        oq.save(made, target)
    assert list(tmp_path.iterdir()) == []


def test_rewrites_in_front_of_quantize_are_held_to_it_in_large_models_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models in between are not kept then, so that the rewrites are named together."""
    monkeypatch.setattr(model_module, "_KEPT_BYTES", 0)
    quantize = oq.Quantize(weights="int8:channel", activations="float")
    oq.save((oq.Simplify() | Scale(1 + 1e-6) | quantize)(small()).model, tmp_path / "good.onnx")
    made = (oq.Simplify() | Scale(1.01) | quantize)(small()).model
    with pytest.raises(ProofError, match=r"'simplify \| scale_weight' would change .* differs by 0\.01"):
        oq.save(made, tmp_path / "out.onnx")


def test_a_rewrite_within_rounding_is_written(tmp_path: Path) -> None:
    made = (oq.Simplify() | Scale(1 + 1e-6))(small()).model
    assert oq.save(made, tmp_path / "out.onnx") == (tmp_path / "out.onnx").stat().st_size


def test_the_command_line_names_the_pass_too(
    invoke: Invoke, work: Path, scale: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("apply", "simplify | scale_weight{by=2}", "tiny.onnx", "-o", "out.onnx")
    assert result.exit_code == 2
    assert "'scale_weight' would change what the model computes: output 'y' differs" in result.stderr
    assert not Path("out.onnx").exists()


def test_a_quantized_model_is_told_its_noise(tmp_path: Path) -> None:
    model = small()
    made = oq.Quantize(weights="int8:channel", activations="float")(model).model
    data = Samples("x", np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32))
    written = write_model(made, tmp_path / "out.onnx", Reference(model, data))
    assert written.proof.feeds == 8
    assert written.proof.real
    assert written.proof.sqnr is not None
    assert 30 < written.proof.sqnr < 60
    assert "on 8 samples, SQNR" in written.proof.sentence()


def test_outputs_of_which_little_is_left_are_told(tmp_path: Path) -> None:
    model = small()
    made = oq.Quantize(weights="int8:channel", activations="float")(Scale(-1)(model).model).model
    ruined = Model(made.proto).rewritten("quantize", model, exact=False)
    told = write_model(ruined, tmp_path / "out.onnx").proof.sentence()
    assert "dB: little is left of its outputs; measure both with eval" in told


def test_samples_of_another_shape_are_compared_too(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["N", "length"], TensorProto.INT64)
    table = net.constant(np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32))
    model = net.model(net.add("Gather", table, x))
    rows = [np.zeros(3 if i < 20 else 5, np.int64) for i in range(30)]

    class Ragged(Samples):
        def __init__(self) -> None:
            super().__init__("x", np.zeros((30, 1)))

        def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
            for row in rows[start:stop]:
                yield Batch({"x": row[None]}, None)

    reference = Reference(model, Ragged())
    reference.run()
    assert [feed["x"].shape for feed in reference.feeds] == [(1, 3)] * 8 + [(1, 5), (2, 3)]


@pytest.mark.parametrize(
    "graph",
    [
        # Windows without padding, a reflecting Pad, a stride, a flattened size, and two inputs of one length.
        "(float[N,3,H,W] x) => (float[N,4,P,Q] y) { y = Conv<kernel_shape=[7,7]>(x, w) }",
        '(float[N,1,L] x) => (float[N,1,M] y) { y = Pad<mode="reflect">(x, pads) }',
        "(float[A] x, float[A] z) => (float[A] y) { y = Add(x, z) }",
        """(float[batch,past] x, float[batch,length] z, float[batch,total] t) => (float[batch,total] y)
        { c = Concat<axis=1>(x, z)  y = Add(c, t) }""",
    ],
)
def test_sizes_are_found_that_the_model_accepts(graph: str) -> None:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {graph}')
    rng = np.random.default_rng(0)
    if "w" in graph.rsplit("Conv", maxsplit=1)[-1]:
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal((4, 3, 7, 7)).astype(np.float32), "w")
        )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 64, 0, 0, 64]), "pads"))
    for value in model.graph.input:
        if value.name == "t":
            value.type.tensor_type.shape.dim[1].dim_param = "past + length"
    reference = Reference(Model(model))
    reference.run()
    assert not reference.untried
    shapes = [[array.shape for array in feed.values()] for feed in reference.feeds]
    assert len(shapes) == (3 if "N" in graph or "batch" in graph else 2)
    assert all(one != other for one, other in itertools.pairwise(shapes))


def test_where_no_input_is_found_the_file_is_written_and_it_is_said(invoke: Invoke, tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["N", "A", "B"])
    flat = net.add("Reshape", x, net.constant(np.array([-1, 7 * 11 * 13])))
    model = shaped(net.model(net.add("MatMul", flat, net.weight(7 * 11 * 13, 4)), infer=False), "M", 4)
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model.proto, path)
    result = invoke("quantize", path, "--activations", "float", "-o", out)
    assert result.exit_code == 0, result.output
    assert "could not be tried: no made-up input was found" in result.stderr
    assert out.exists()


ENDLESS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,4] x) => (float[N,4] y) {
  limit = Constant<value = int64 {9223372036854775807}>()
  yes = Constant<value = bool {1}>()
  y = Loop(limit, yes, x) <body = body (int64 i, bool c, float[N,4] a) => (bool d, float[N,4] b)
    { d = Identity(c)  b = Relu(a) }>
}
"""


def test_a_model_that_never_ends_does_not_hang_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "MADE_UP_SECONDS", 0.5)
    written = write_model(Model(parser.parse_model(ENDLESS)), tmp_path / "out.onnx")
    assert written.proof.untried == "the given model did not end within 0 s"


def test_a_written_model_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites_module, "_LEAST_SECONDS", 0.5)
    monkeypatch.setattr(rewrites_module, "_SLOWER", 0.0)
    given = Model(parser.parse_model(ENDLESS.replace("9223372036854775807", "3")))
    made = Model(parser.parse_model(ENDLESS)).rewritten("quantize", given, exact=False)
    with pytest.raises(ProofError, match="did not end within"):
        write_model(made, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def mel(path: Path) -> None:
    """A filter bank of which one weight an int8 scale per tensor rounds to zero, Log, a layer."""
    bank = np.full((6, 4), 1.0, np.float32)
    bank[:, 2] = 1e-6
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N,6] x) => (float[N,3] y) '
        "{ [mel] a = MatMul(x, w)  [log] l = Log(a)  [head] y = MatMul(l, v) }"
    )
    head = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(bank, "w"), numpy_helper.from_array(head, "v")])
    onnx.save(model, path)
    np.savez(path.with_suffix(".npz"), x=np.random.default_rng(1).uniform(0.1, 1, (12, 6)).astype(np.float32))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_nan_is_an_error_that_names_where_it_begins(invoke: Invoke, tmp_path: Path, rounding: str) -> None:
    mel(tmp_path / "mel.onnx")
    options = ("--weights", "int8:tensor", "--activations", "float", "--rounding", rounding)
    out = tmp_path / "out.onnx"
    result = invoke("quantize", tmp_path / "mel.onnx", "--data", tmp_path / "mel.npz", *options, "-o", out)
    assert result.exit_code == 2
    assert not out.exists()
    if rounding == "nearest":
        assert "'l', made by Log 'log'; keep layer 'mel' in front of it float" in result.stderr
    else:
        assert "layer 'head': its input becomes NaN or infinite once the layers in front" in result.stderr


def test_declared_output_shapes_are_not_believed(invoke: Invoke, tmp_path: Path) -> None:
    """As a public OCR network does: it declares [1, -1] and gives [length, 1, classes]."""
    net = Net()
    x = net.input("x", [1, 3, "H", "W"])
    y = net.conv(x, 3, 8, name="conv")
    squeezed = net.add("ReduceMean", y, axes=[2], keepdims=0)
    turned = net.add("Transpose", squeezed, perm=[2, 0, 1])
    # Shape inference cannot see through Compress, so that nothing but a run shows the contradiction.
    sizes = net.add("Compress", net.add("Shape", turned), net.constant(np.ones(3, np.bool_)))
    model = shaped(net.model(net.add("Reshape", turned, sizes), infer=False), 1, -1)
    path, out = tmp_path / "ocr.onnx", tmp_path / "out.onnx"
    onnx.save(model.proto, path)
    for command in (
        ("fold",),
        ("quantize", "--activations", "float"),
        ("quantize", "--activations", "dynamic"),
    ):
        result = invoke(command[0], path, *command[1:], "-o", out)
        assert result.exit_code == 0, result.output
        assert "is declared as [1, ?] and has the shape" in result.stderr
        for width in (5, 40):
            feed = {"x": np.ones((1, 3, 4, width), np.float32)}
            assert ort.InferenceSession(out).run(None, feed)[0].shape == (width, 1, 8)


def test_random_and_value_dependent_models_are_no_false_alarm(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    y = net.conv(x, 3, 4)
    noise = net.add("RandomNormalLike", y)
    found = net.add("NonZero", net.add("Relu", y))
    model = shaped(net.model(found, infer=False, element=TensorProto.INT64), 4, "found")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.append(helper.make_tensor_value_info(noise, TensorProto.FLOAT, ["N", 4, 8, 8]))
    model = Model(proto, "net.onnx")
    for item in (oq.Simplify(), oq.Quantize(weights="int4:channel", activations="float")):
        made = item(model).model
        written = write_model(made, tmp_path / "out.onnx", Reference(model))
        assert written.proof.feeds >= 1


def test_outputs_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    given = small()
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,8,8] x) => ({}) {{ {} }}'
    for output, node in (
        ("float[N,192] dropout2_out", "dropout2_out = Flatten(x)"),
        ("double[N,3,8,8] dropout2_out", "dropout2_out = Cast<to=11>(x)"),
    ):
        made = Model(parser.parse_model(text.format(output, node))).rewritten("quantize", given, exact=False)
        with pytest.raises(ProofError, match="where the given model gives float32"):
            write_model(made, tmp_path / "out.onnx")


def test_a_model_that_loads_but_does_not_run_is_refused(tmp_path: Path) -> None:
    given = small()
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    made = net.model(
        net.add("Reshape", x, net.constant(np.array([5, 7])), outputs=["dropout2_out"]), infer=False
    )
    with pytest.raises(InvalidModelError, match="loads it but cannot run it"):
        write_model(made.rewritten("quantize", given, exact=False), tmp_path / "out.onnx")
    with pytest.raises(ProofError, match="'mine' would change"):
        write_model(made.rewritten("mine", given, exact=True), tmp_path / "out.onnx")


def test_integers_must_agree_exactly_unless_the_model_itself_is_undecided(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    y = net.conv(x, 3, 4, bias=False)
    model = net.model(net.add("ArgMax", y, axis=1), element=TensorProto.INT64)
    with pytest.raises(ProofError, match="output 'argmax1_out' has other values"):
        oq.save(Scale(-1)(model).model, tmp_path / "out.onnx")
    assert oq.save(Scale(2)(model).model, tmp_path / "out.onnx")


def test_a_random_output_excuses_no_other(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["N", 3, 8, 8])
    y = net.conv(x, 3, 4)
    noise = net.add("RandomNormalLike", x)
    proto = onnx.ModelProto()
    proto.CopyFrom(net.model(y).proto)
    proto.graph.output.append(helper.make_tensor_value_info(noise, TensorProto.FLOAT, ["N", 3, 8, 8]))
    model = Model(proto, "net.onnx")
    assert oq.save(Scale(1 + 1e-6)(model).model, tmp_path / "out.onnx")
    with pytest.raises(ProofError, match=f"output '{y}' differs by 0.5 of its largest value"):
        oq.save(Scale(1.5)(model).model, tmp_path / "wrong.onnx")


@pytest.mark.parametrize("by", [1 + 1e-6, 1.05])
def test_bytes_may_differ_where_the_model_itself_is_undecided_and_nowhere_else(
    tmp_path: Path, by: float
) -> None:
    net = Net()
    y = net.conv(net.input("x", ["N", 3, 64, 64]), 3, 8)
    scaled = net.add("Mul", y, net.constant(np.array(30, np.float32)))
    model = net.model(net.add("Cast", scaled, to=TensorProto.INT8), element=TensorProto.INT8)
    made = Scale(by)(model).model
    if by < 1.01:
        assert oq.save(made, tmp_path / "out.onnx")
    else:
        with pytest.raises(ProofError, match="has other values"):
            oq.save(made, tmp_path / "out.onnx")


def test_a_signal_beside_a_recurrent_state_gets_sizes() -> None:
    """As a public voice detector has them: [?, ?] of at least a window, and [2, ?, 4] of one row."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[?,?] x, float[2,?,4] state, int64 rate) => (float[?,4,?] y, float[8] next)
        { s = Unsqueeze(x, one)  y = Conv(s, w)  next = Reshape(state, row) }""")
    weight = np.random.default_rng(0).standard_normal((4, 1, 64)).astype(np.float32)
    for name, array in (("w", weight), ("one", np.array([1])), ("row", np.array([8]))):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    reference = Reference(Model(proto))
    reference.run()
    assert not reference.untried
    assert [feed["state"].shape for feed in reference.feeds] == [(2, 1, 4)] * len(reference.feeds)
    assert [feed["x"].shape for feed in reference.feeds] == [(1, 64), (1, 128), (2, 64)]


def test_feeds_are_drawn_only_when_they_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    draw = feeds._drawn

    def counted(shape: tuple[int, ...], *rest: Any) -> Any:
        drawn.append(shape)
        return draw(shape, *rest)

    monkeypatch.setattr(feeds, "_drawn", counted)
    net = Net()
    Reference(net.model(net.conv(net.input("x", [1, 3, 8, 8]), 3, 4))).run()
    assert drawn == [(1, 3, 8, 8)]


@dataclass(frozen=True)
class FixBatch(GraphPass):
    """Takes the batch for 1, and claims to keep the function."""

    name: ClassVar[str] = "fix_batch"
    keeps_function: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: Context) -> bool:
        node = next(node for node in graph.nodes if node.op == "Shape")
        node.op, node.attrs = "Constant", {"value": gs.Constant("one", np.array([1]))}
        node.inputs = []
        return True


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("shape", [["N", 4, 3], ["N", "L", 3], [None, None, 3]])
def test_every_batch_is_tried(tmp_path: Path, shape: list[int | str], data: bool) -> None:
    net = Net()
    x = net.input("x", shape)
    batch = net.add("Cast", net.add("Shape", x, start=0, end=1), to=TensorProto.FLOAT)
    model = shaped(net.model(net.add("Mul", x, batch), infer=False), "a", "b", 3)
    samples = Samples("x", np.random.default_rng(0).standard_normal((10, 4, 3)).astype(np.float32))
    with pytest.raises(ProofError, match="'fix_batch' would change what the model computes"):
        oq.save(FixBatch()(model).model, tmp_path / "out.onnx", data=samples if data else None)


def test_a_model_that_wants_positive_numbers_gets_them(tmp_path: Path) -> None:
    net = Net()
    model = net.model(net.add("MatMul", net.add("Log", net.input("x", ["N", 64])), net.weight(64, 3)))
    with pytest.raises(ProofError, match="'scale_weight' would change"):
        oq.save(Scale(1.5)(model).model, tmp_path / "out.onnx")


@pytest.mark.parametrize("ops", [("Abs", "Neg", "Log"), ("Abs", "Neg", "Relu")])
def test_nothing_but_nan_or_zeros_is_no_comparison(tmp_path: Path, ops: tuple[str, ...]) -> None:
    net = Net()
    y = net.input("x", ["N", 3])
    for op in ops:
        y = net.add(op, y)
    written = write_model(net.model(net.add("MatMul", y, net.weight(3, 3))), tmp_path / "out.onnx")
    assert written.proof.untried.startswith("all outputs of the given model are empty, 0, NaN or infinite")
    assert written.proof.feeds == 0


def test_a_model_that_onnx_runtime_does_not_run_is_not_blamed_on_a_pass(tmp_path: Path) -> None:
    net = Net(dtype=np.float64)
    model = net.model(net.conv(net.conv(net.input("x", ["N", 3, 8, 8]), 3, 4), 4, 4))
    made = Scale(1)(model).model
    with pytest.raises(InvalidModelError, match=r"^net.onnx: ONNX Runtime cannot load it: .*Conv"):
        oq.save(made, tmp_path / "out.onnx")


def test_a_second_feed_that_takes_too_long_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runner.run

    def slow(self: Runner, feed: dict[str, np.ndarray], seconds: float) -> dict[str, object]:
        if feed["x"].shape[0] > 1:
            raise Overtime
        return run(self, feed, seconds)

    monkeypatch.setattr(Runner, "run", slow)
    written = write_model(small(), tmp_path / "out.onnx")
    assert (written.proof.untried, written.proof.feeds) == ("", 1)


class TestLogits:
    def test_eval_and_tune_refuse_a_model_that_gives_nan(self, invoke: Invoke, work: Path) -> None:
        model = onnx.load("tiny.onnx")
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b4")
        bias.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), "b4"))
        onnx.save(model, "nan.onnx")
        for command in (("eval", "nan.onnx"), ("tune", "nan.onnx", "-o", "run")):
            result = invoke(*command, "--data", "data.npz")
            assert result.exit_code == 2, result.output
            assert "NaN or infinity for sample 0" in result.stderr
