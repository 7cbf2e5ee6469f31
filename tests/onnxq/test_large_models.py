"""Every command on a model that counts as large, with its weights in several files, in Constant nodes too.

The limit is lowered to some kilobytes, so that a small model takes the way of one of more than 2 GB; what a
command gives must be what it gives for the same model in one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper, parser

import onnxq.session
import passes.graph.model
from onnxq.session import load_session
from passes.core.errors import InvalidModelError
from passes.core.recipe import parse_recipe
from passes.graph.external_data import KEPT_BYTES, Reference, has_references, is_external, tensor_array
from passes.graph.model import Model, check, is_large, load, model_files, save, serialize, size_on_disk
from passes.graph.tensors import every_tensor, stored_bytes

Invoke = Callable[..., Result]
LIMIT = 2**15
GRAPH = """
<ir_version: 8, opset_import: ["" : %d]>
large (int64[N] ids) => (float[N,5] y) {
  [look] a = Gather(table, ids)
  [as_image] b = Reshape(a, shape)
  [conv] c = Conv<pads=[1,1,1,1]>(b, kernel)
  [bn] d = BatchNormalization(c, scale, shift, mean, var)
  [relu] e = Relu(d)
  [gap] f = GlobalAveragePool(e)
  [flat] g = Flatten(f)
  [fc1] h = MatMul(g, held)
  [relu2] i = Relu(h)
  [fc2] j = Gemm(i, second, bias)
  [relu3] k = Relu(j)
  [fc3] y = MatMul(k, third)
}
"""
SHAPES = {
    "table": (64, 512),
    "kernel": (32, 32, 3, 3),
    "scale": (32,),
    "shift": (32,),
    "mean": (32,),
    "var": (32,),
    "second": (160, 160),
    "bias": (160,),
    "third": (160, 5),
}


def _network(opset: int = 17) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = parser.parse_model(GRAPH % opset)
    for name, shape in SHAPES.items():
        values: Any = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values = np.abs(values) + 0.5 if name == "var" else values
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 32, 4, 4]), "shape"))
    held = numpy_helper.from_array(rng.standard_normal((32, 160)).astype(np.float32), "")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["held"], "constant", value=held))
    onnx.checker.check_model(model, full_check=True)
    return model


def _move_out(tensor: onnx.TensorProto, folder: Path, location: str, *, bare: bool = False) -> None:
    """Append the tensor's values to a file. bare: it says neither offset nor length."""
    path = folder / location
    path.parent.mkdir(exist_ok=True)
    values = numpy_helper.to_array(tensor).tobytes()
    offset = path.stat().st_size if path.exists() else 0
    with path.open("ab") as handle:
        handle.write(values)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location} | ({} if bare else {"offset": offset, "length": len(values)})
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def write_both(folder: Path, opset: int = 17) -> None:
    """plain.onnx, and the same as large.onnx with weights.bin and parts/first.data."""
    model = _network(opset)
    onnx.save(model, folder / "plain.onnx")
    for tensor in every_tensor(model):
        if tensor.name == "kernel":
            _move_out(tensor, folder, "parts/first.data", bare=True)
        elif tensor.name != "shape":
            _move_out(tensor, folder, "weights.bin")
    onnx.save(model, folder / "large.onnx")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_both(tmp_path)
    ids = np.random.default_rng(1).integers(0, 64, 12)
    labels = load_session("plain.onnx", threads=1).run(None, {"ids": ids})[0].argmax(axis=1)
    np.savez("data.npz", inputs=ids, labels=np.where(np.arange(12) < 7, labels, (labels + 1) % 5))
    return tmp_path


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def outputs(path: Path | str | Model) -> np.ndarray:
    return np.asarray(load_session(path, threads=1).run(None, {"ids": np.load("data.npz")["inputs"]})[0])


def _schemes() -> list[tuple[str, ...]]:
    weights = ("int8", "int4", "int4:block32", "gse6:block32", "tcq3", "int5", "uint8:asym")
    found: list[tuple[str, ...]] = [
        ("quantize", "IN", "--weights", text, "--activations", "float") for text in weights
    ]
    found.append(("quantize", "IN", "--activations", "dynamic"))
    found.append(("quantize", "IN", "--data", "data.npz"))
    found.append(("quantize", "IN", "--data", "data.npz", "--rounding", "bias", "--weights", "int4"))
    found.append(("apply", "simplify | fold_batchnorm | quantize{activations=float}", "IN"))
    return [*found, ("fold", "IN"), ("smooth", "IN", "--layers", "all")]


@pytest.mark.parametrize("command", _schemes(), ids=" ".join)
def test_a_large_model_gives_what_the_same_model_in_one_file_gives(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    ok(invoke(*(word.replace("IN", "plain.onnx") for word in command), "-o", "wanted.onnx"))
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    monkeypatch.setattr(onnxq.session, "FOLDED_BYTES", LIMIT)
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    ok(invoke(*(word.replace("IN", "large.onnx") for word in command), "-o", "made.onnx"))
    assert all(path.read_bytes() == content for path, content in before.items())
    made = onnx.load("made.onnx", load_external_data=False)
    assert has_references(made) == Path("made.onnx.data").exists() == is_large(load("made.onnx").proto)
    onnx.checker.check_model("made.onnx", full_check=True)
    np.testing.assert_allclose(outputs("made.onnx"), outputs("wanted.onnx"), rtol=1e-4, atol=1e-5)
    assert size_on_disk(Path("made.onnx")) == sum(path.stat().st_size for path in work.glob("made.onnx*"))


def test_decode(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(
        invoke(
            "quantize", "plain.onnx", "--weights", "gse6:block32", "--activations", "float", "-o", "q.onnx"
        )
    )
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    ok(invoke("decode", "q.onnx", "-o", "float.onnx"))
    assert Path("float.onnx.data").stat().st_size > LIMIT
    np.testing.assert_array_equal(outputs("float.onnx"), outputs("q.onnx"))


def test_info_reads_no_weights_and_says_the_same(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = json.loads(ok(invoke("info", "plain.onnx", "--json")).stdout)
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    found = json.loads(ok(invoke("info", "large.onnx", "--json")).stdout)
    total = sum(Path(name).stat().st_size for name in ("large.onnx", "weights.bin", "parts/first.data"))
    assert found["bytes"] == total
    assert [layer["weights"] for layer in found["layers"]] == ["float"] * 4
    for name in ("layers", "macs", "ops", "parameters", "inputs", "outputs"):
        assert found[name] == wanted[name]


def test_info_leaves_external_weights_of_small_models_where_they_are(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = json.loads(ok(invoke("info", "plain.onnx", "--json")).stdout)
    seen: list[int] = []
    read = Reference.read

    def noted(source: Reference) -> Any:
        seen.append(source.length)
        return read(source)

    monkeypatch.setattr(Reference, "read", noted)
    found = json.loads(ok(invoke("info", "large.onnx", "--json")).stdout)
    assert max(seen) <= KEPT_BYTES
    for name in ("layers", "macs", "ops", "parameters", "inputs", "outputs"):
        assert found[name] == wanted[name]


def test_golden_and_eval(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(invoke("golden", "update", "simplify", "plain.onnx", "golden.txt"))
    score = json.loads(ok(invoke("eval", "plain.onnx", "--data", "data.npz", "--json")).stdout)
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    ok(invoke("golden", "check", "simplify", "large.onnx", "golden.txt"))
    again = json.loads(ok(invoke("eval", "large.onnx", "--data", "data.npz", "--json")).stdout)

    assert again["models"][0]["metrics"] == score["models"][0]["metrics"]
    assert score["models"][0]["metrics"]["top1"] == pytest.approx(7 / 12)
    assert again["models"][0]["bytes"] == size_on_disk(Path("large.onnx"))


def test_the_opset_of_a_large_model_is_upgraded(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "old").mkdir()
    write_both(work / "old", opset=12)
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    ok(invoke("quantize", "old/large.onnx", "--activations", "float", "-o", "made.onnx"))
    assert load("made.onnx").opset() >= 13
    check(load("made.onnx"))
    error = np.abs(outputs("made.onnx") - outputs("old/plain.onnx")).max()
    assert error < 0.02 * np.abs(outputs("old/plain.onnx")).max()


NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
nested (bool c, float[N,128] x) => (float[N,128] y) {
  y = If(c) <
    then_branch = yes () => (float[N,128] p) { p = MatMul(x, w) },
    else_branch = no () => (float[N,128] q) { [add] s = Add(x, x)  q = MatMul(s, w) }
  >
}
"""


def _nested(folder: Path) -> np.ndarray:
    """nested.onnx, whose branches have a weight each, both called w, in a file. Returns the weights."""
    model = parser.parse_model(NESTED)
    arrays = np.random.default_rng(0).standard_normal((2, 128, 128)).astype(np.float32)
    for attribute, array in zip(model.graph.node[0].attribute, arrays, strict=True):
        tensor = numpy_helper.from_array(array, "w")
        _move_out(tensor, folder, "nested.bin")
        attribute.g.initializer.append(tensor)
    onnx.save(model, folder / "nested.onnx")
    return arrays


def test_weights_of_nested_graphs(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = _nested(work)
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    ok(invoke("fold", "nested.onnx", "-o", "folded.onnx"))
    ok(invoke("quantize", "nested.onnx", "--activations", "float", "-o", "made.onnx"))
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    for name, tolerance in (("nested.onnx", 1e-5), ("folded.onnx", 1e-5), ("made.onnx", 0.02)):
        for session in (load_session(name, threads=1), load_session(load(name), threads=1)):
            for chosen, factor, array in ((True, 1, arrays[0]), (False, 2, arrays[1])):
                wanted = factor * x @ array
                found = session.run(None, {"c": np.array(chosen), "x": x})[0]
                assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    layers = json.loads(ok(invoke("info", "made.onnx", "--json")).stdout)["layers"]
    assert [layer["weights"] for layer in layers] == ["int8:channel"] * 2


def test_constant_nodes_that_read_files_are_folded(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    turned (float[N,128] x) => (float[N,128] y) {
      [turn] t = Transpose<perm=[1,0]>(w)  [twice] u = Add(t, t)  [fc] y = MatMul(x, u)
    }
    """
    model = parser.parse_model(text)
    array = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    tensor = numpy_helper.from_array(array, "w")
    _move_out(tensor, work, "w.bin")
    model.graph.initializer.append(tensor)
    onnx.save(model, "turned.onnx")
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    result = parse_recipe("simplify")(load("turned.onnx")).model
    assert [node.op_type for node in result.proto.graph.node] == ["MatMul"]
    [held] = result.proto.graph.initializer
    assert is_external(held)
    np.testing.assert_array_equal(tensor_array(held), 2 * array.T)


Edit = Callable[[onnx.TensorProto], None]


def _entry(key: str, value: str) -> Edit:
    def edit(tensor: onnx.TensorProto) -> None:
        kept = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
        del tensor.external_data[:]
        for name, text in kept.items():
            tensor.external_data.add(key=name, value=text)

    return edit


def _link(tensor: onnx.TensorProto) -> None:
    Path("link.bin").symlink_to("../outside.bin")
    _entry("location", "link.bin")(tensor)


def _remove(tensor: onnx.TensorProto) -> None:
    Path("weights.bin").unlink()


def _folder(tensor: onnx.TensorProto) -> None:
    Path("folder").mkdir()
    _entry("location", "folder")(tensor)


def _not_text(tensor: onnx.TensorProto) -> None:
    """A location that is not UTF-8, which protobuf reads as bytes."""
    _entry("location", "@@@")(tensor)
    raw = tensor.SerializeToString().replace(b"@@@", b"\xff\xfe\xfd")
    tensor.ParseFromString(raw)


def _no_location(tensor: onnx.TensorProto) -> None:
    del tensor.external_data[:]


@pytest.mark.parametrize("limit", [LIMIT, 2**31])
@pytest.mark.parametrize("command", ["info", "fold"])
@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (_remove, "missing"),
        (_folder, "missing"),
        (_no_location, "must be in the model's folder"),
        (_entry("location", "../outside.bin"), "must be in the model's folder"),
        (_entry("location", "parts/../../outside.bin"), "must be in the model's folder"),
        (_entry("location", "/etc/passwd"), "must be in the model's folder"),
        (_entry("location", "C:/outside.bin"), "must be in the model's folder"),
        (_link, "must be in the model's folder"),
        (_entry("location", "a\0b"), "must be in the model's folder"),
        (_entry("location", "a" * 5000), "missing"),
        (_not_text, "must be in the model's folder"),
        (_entry("offset", "100000000"), "which has only"),
        (_entry("offset", "-4"), "from -4 on"),
        (_entry("offset", "many"), "not a number"),
        (_entry("length", "17"), "is 17 bytes"),
        (_entry("length", "9" * 5000), "not a number"),
    ],
)
def test_external_data_that_cannot_be_read_is_one_sentence(
    invoke: Invoke,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Edit,
    word: str,
    command: str,
    limit: int,
) -> None:
    (work.parent / "outside.bin").write_bytes(bytes(2**20))
    model = onnx.load("large.onnx", load_external_data=False)
    edit(next(tensor for tensor in model.graph.initializer if tensor.name == "second"))
    onnx.save(model, "bad.onnx")
    monkeypatch.setattr(passes.graph.model, "LARGE", limit)
    result = invoke(command, "bad.onnx")
    assert result.exit_code == 2
    assert word in result.stderr
    assert "bad.onnx" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(work.glob("bad.fold*"))


def test_no_file_of_the_input_is_overwritten(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    save(load("plain.onnx"), "a.onnx")
    onnx.save(onnx.load("a.onnx", load_external_data=False), "b.onnx")  # b.onnx reads a.onnx.data
    before = Path("a.onnx.data").read_bytes()
    for target in ("a.onnx", "a.onnx.data"):
        result = invoke("fold", "b.onnx", "-o", target)
        assert result.exit_code == 2, target
        assert "external data of the input" in result.stderr
    assert Path("a.onnx.data").read_bytes() == before
    assert [path.name for path in model_files(Path("b.onnx"))] == ["b.onnx", "a.onnx.data"]


def test_tied_weights_are_written_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    model = load("large.onnx").proto
    copy = model.graph.initializer.add()
    copy.CopyFrom(next(tensor for tensor in model.graph.initializer if tensor.name == "second"))
    copy.name = "tied"
    save(Model(model), "tied.onnx")
    assert Path("tied.onnx.data").stat().st_size < size_on_disk(Path("plain.onnx")) + 2**15


def _like_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages that count as more than 2 GB raise as real ones of protobuf 7 do, without their memory."""
    for name in ("ByteSize", "SerializeToString"):
        real = getattr(onnx.ModelProto, name)

        def limited(proto: onnx.ModelProto, *args: Any, real: Any = real, **options: Any) -> Any:
            if sum(map(stored_bytes, every_tensor(proto))) > 2**31:
                raise EncodeError("Failed to serialize proto")
            return real(proto, *args, **options)

        monkeypatch.setattr(onnx.ModelProto, name, limited)


def test_protobufs_limit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks a message of more than 2 GB for its size or its bytes, or what it raises is told."""
    _like_protobuf(monkeypatch)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    proto = parser.parse_model(text)
    proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.INT8, dims=[2**31 + 5])
    model = Model(proto, "huge")
    with pytest.raises(EncodeError):
        proto.ByteSize()
    assert is_large(proto)
    check(model)
    once = model.rewritten("one", model, exact=True)
    assert [step.before for step in once.rewritten("two", once, exact=True).history] == [model, None]
    with pytest.raises(InvalidModelError, match="huge: over 2 GB"):
        serialize(model)
    monkeypatch.setattr(passes.graph.model, "LARGE", 2**40)  # what nothing counts, such as long texts
    with pytest.raises(InvalidModelError, match="huge: over 2 GB"):
        serialize(model)


def test_a_command_leaves_no_temporary_file_in_this_process(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = work / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(passes.graph.model, "LARGE", LIMIT)
    for command in ("fold large.onnx -o a.onnx", "quantize large.onnx --activations float -o b.onnx"):
        assert invoke(*command.split()).exit_code == 0
        assert [path.name for path in temporary.glob("onnxq-*")] == []
