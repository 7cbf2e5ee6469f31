"""`onnxq train`, from a file to a file: what is stored is what was trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner, Result

from onnxq.cli import cli
from onnxq.data import input_specs, open_dataset
from onnxq.training.config import TrainConfig
from onnxq.training.export import exported, settled
from onnxq.training.run import Run
from onnxq.training.trainer import Trainer
from passes.core.errors import ResumeError, UserError
from passes.graph.layers import find_layers
from passes.graph.model import Model, load
from passes.policy import LayerPolicy, Policy, Scheme
from tests.nets import run
from tests.onnxq.conftest import make_data, make_tiny

QUICK = ("--epochs", "4", "--batch", "8", "--augment", "flip", "--lr", "0.01")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_data(make_tiny(folder / "tiny.onnx"), folder / "data.npz")
    return folder


@pytest.fixture
def work(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("tiny.onnx", "data.npz"):
        os.link(place / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, ["train", "tiny.onnx", "--data", "data.npz", *QUICK, *args])


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def stock_accuracy(path: str) -> float:
    """Top-1 in ONNX Runtime with no library of ours."""
    with np.load("data.npz") as data:
        x, y = data["x"], data["y"]
    session: Any = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"x": x})[0].argmax(1) == y).mean())


def made(work: Path, **settings: Any) -> Run:
    model = load(work / "tiny.onnx")
    data = open_dataset(work / "data.npz", input_specs(model.proto))
    config = TrainConfig(epochs=2, batch=8, lr=0.01, **settings)
    return Run(config, model, data, data)


def trained(one: Run) -> tuple[Model, Any]:
    """The file's model, and the logits of the settled network."""
    method = one.method()
    trainer = one.trainer(method, one.settings(one.config.epochs))
    assert trainer.run()
    result = method.result()
    settled(one.network, result)
    x = torch.from_numpy(np.load("data.npz")["x"])
    with torch.no_grad():
        return exported(one.network, result), one.network.eval()(x).numpy()


def close(model: Model, wanted: Any, tolerance: float = 1e-4) -> None:
    found = run(model, {"x": np.load("data.npz")["x"]})[0]
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_msq_from_file_to_file(work: Path) -> None:
    found = document(invoke("--compression", "9.5", "--validation", "data.npz", "-o", "out.onnx", "--json"))
    assert found["accuracy"] == pytest.approx(stock_accuracy("out.onnx"), abs=1e-3)
    layers = {layer.name: layer for layer in find_layers(load("tiny.onnx"))}
    bits = found["bits"]
    assert list(bits) == list(layers)
    total = sum(layer.weights for layer in layers.values())
    assert 32 * total / sum(bits[name] * layer.weights for name, layer in layers.items()) >= 9.5
    policy = json.loads(load("out.onnx").metadata["onnxq.policy"])["layers"]
    assert {name: entry["weights"] for name, entry in policy.items()} == {
        n: f"int{b}" for n, b in bits.items()
    }
    log = [json.loads(line) for line in Path("out.train/log.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "nonzero_lsb", "bits", "compression", "omega"} <= set(log[-1])
    assert log[-1]["step"] == 20
    assert Path("out.train/bits.png").stat().st_size > 1000
    assert Path("out.train/curves.png").stat().st_size > 1000


@pytest.mark.parametrize("steps", ["learned", "max"])
def test_msq_stores_the_trained_values(work: Path, steps: str) -> None:
    close(*trained(made(work, compression=12.0, steps=steps)))


@pytest.mark.parametrize("ranges", ["lsq", "pact"])
def test_msq_with_activations(work: Path, ranges: str) -> None:
    """Rounding at the edges of bins may differ by a step of 3 bits here and there; most logits are equal."""
    model, wanted = trained(made(work, compression=8.0, activations="3", ranges=ranges))
    found = run(model, {"x": np.load("data.npz")["x"]})[0]
    assert np.median(np.abs(found - wanted)) <= 1e-4 * np.abs(wanted).max()
    policy = json.loads(model.metadata["onnxq.policy"])["layers"]
    assert {entry["activations"] for entry in policy.values()} == {"uint3:asym"}


@pytest.mark.parametrize(
    ("quantizer", "weights"),
    [("lsq", "int3:tensor"), ("lsq", "int4:channel"), ("lsq", "int8:channel"), ("lsq", "int4:block16"),
     ("lsq", "gse3:block16"), ("roundclamp", "int5"), ("dorefa", "int2")],
)  # fmt: skip
def test_qat_stores_the_trained_values(work: Path, quantizer: str, weights: str) -> None:
    close(*trained(made(work, method="qat", quantizer=quantizer, weights=weights)))


def test_qat_obeys_a_policy(work: Path) -> None:
    layers = find_layers(load("tiny.onnx"))
    texts = ["float", "gse4:block8", "int3:channel", "int8"]
    policy = Policy(
        {layer.name: LayerPolicy(Scheme.parse(text)) for layer, text in zip(layers, texts, strict=True)}
    )
    Path("p.json").write_text(json.dumps(policy.to_json()))
    document(invoke("--method", "qat", "--policy", "p.json", "-o", "out.onnx", "--json"))
    kept = json.loads(load("out.onnx").metadata["onnxq.policy"])["layers"]
    assert [kept[layer.name]["weights"] for layer in layers] == texts


def test_smpq_keeps_to_its_bit_operations(work: Path) -> None:
    found = document(
        invoke("--method", "smpq", "--activations", "8", "--bops", "0.5", "--bits", "2,4,8", "--updates", "2",
               "--validation", "data.npz", "-o", "out.onnx", "--json")
    )  # fmt: skip
    assert set(found["bits"].values()) <= {2, 4, 8}
    from passes.graph.layers import macs

    counts = macs(load("tiny.onnx"))
    assert sum(counts[name] * bits * 8 for name, bits in found["bits"].items()) <= 0.5 * 64 * sum(
        counts.values()
    )
    alpha = json.loads(Path("out.train/search/search.json").read_text())["alpha"]
    assert np.linalg.norm(alpha) > 0.1
    assert found["accuracy"] == pytest.approx(stock_accuracy("out.onnx"), abs=0.1)


def test_distillation_needs_no_labels(work: Path) -> None:
    np.save("plain.npy", np.load("data.npz")["x"])
    args = ["train", "tiny.onnx", "--data", "plain.npy", *QUICK, "-o", "o.onnx", "--json"]
    assert CliRunner().invoke(cli, args).exit_code == 2
    assert document(CliRunner().invoke(cli, [*args, "--distill", "1"]))["finished"]


class KilledError(Exception):
    """Stands for a kill: nothing is saved behind it."""


@pytest.mark.parametrize("method", ["msq", "qat"])
def test_killed_in_the_middle_of_an_epoch_it_ends_as_without(
    work: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, bit for bit: on one machine and thread, and so the same policy and accuracy."""
    args = ("--method", method, "--checkpoint", "0s", "--distill", "0.5")
    assert invoke(*args, "-o", "whole.onnx").exit_code == 0
    plain = Trainer._one

    def dies(self: Trainer) -> None:
        if self.step == 7:
            raise KilledError
        plain(self)

    monkeypatch.setattr(Trainer, "_one", dies)
    assert isinstance(invoke(*args, "-o", "broken.onnx").exception, (KilledError, SystemExit))
    assert not Path("broken.onnx").exists()
    monkeypatch.setattr(Trainer, "_one", plain)
    seen: list[int] = []

    def noted(self: Trainer) -> None:
        seen.append(self.step)
        plain(self)

    monkeypatch.setattr(Trainer, "_one", noted)
    assert invoke(*args, "-o", "broken.onnx").exit_code == 0
    assert seen == list(range(7, 20))
    assert Path("broken.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_the_same_seed_gives_the_same_file_and_another_another(work: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert invoke("--seed", seed, "-o", f"{name}.onnx").exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes() != Path("c.onnx").read_bytes()


def test_pieces_of_time(work: Path) -> None:
    """--for stops at a checkpoint with exit code 4; the same line goes on, and ends as in one piece."""
    line = ("--epochs", "0.6", "--for", "0.000001s", "-o", "out.onnx")
    codes = [invoke(*line).exit_code for _ in range(3)]
    assert codes == [4, 4, 0]
    assert invoke("--epochs", "0.6", "-o", "whole.onnx").exit_code == 0
    assert Path("out.onnx").read_bytes() == Path("whole.onnx").read_bytes()


def test_another_training_is_not_continued(work: Path) -> None:
    assert invoke("-o", "out.onnx").exit_code == 0
    other = invoke("--lr", "0.02", "-o", "out.onnx")
    assert other.exit_code == 2
    assert "lr was 0.01 and is 0.02" in other.stderr
    assert invoke("--lr", "0.02", "--fresh", "-o", "out.onnx").exit_code == 0


def test_a_broken_checkpoint_is_an_error(work: Path) -> None:
    assert invoke("-o", "out.onnx").exit_code == 0
    Path("out.train/checkpoint.pt").write_bytes(b"no")
    found = invoke("-o", "out.onnx")
    assert found.exit_code == 2
    assert "checkpoint.pt" in found.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--compression", "17"), "17 is out of reach"),
        (("--batch", "41"), "fewer than a batch"),
        (("--epochs", "0"), "--epochs 0"),
        (("--device", "cuda:7"), "--device cuda:7"),
        (("--method", "qat", "--weights", "uint4:asym"), "uint4"),
        (("--method", "qat", "--weights", "tcq3"), "tcq3"),
        (("--method", "qat", "--activations", "uint8:dynamic"), "not trained"),
        (("--method", "smpq", "--bops", "0.01", "--activations", "8"), "--bops 0.01"),
        (("--augment", "turn"), "--augment turn"),
        (("--method", "smpq", "--bits", "2,x"), "--bits 2,x"),
        (("--policy", "absent.json", "--method", "qat"), "absent.json"),
    ],
)
def test_mistakes_are_one_sentence(work: Path, args: tuple[str, ...], said: str) -> None:
    found = invoke(*args, "-o", "out.onnx")
    assert found.exit_code == 2, found.output
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not Path("out.onnx").exists()


def test_without_torch_it_says_what_to_install(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    found = invoke("-o", "out.onnx")
    assert found.exit_code == 2
    assert "pip install 'onnxq[train]'" in found.stderr


def test_a_loss_that_is_no_number_ends_the_training(work: Path) -> None:
    found = invoke("--lr", "1e30", "-o", "out.onnx")
    assert found.exit_code == 2
    assert "--lr" in found.stderr
    shutil.rmtree("out.train", ignore_errors=True)


def test_resuming_with_another_model_names_it(work: Path) -> None:
    one = made(work)
    one.folder = work / "f"
    trainer = one.trainer(one.method(), one.settings(0.2))
    trainer.run()
    again = made(work)
    again.folder, again.identity["model"] = work / "f", "other"
    with pytest.raises(ResumeError, match="model was"):
        again.trainer(again.method(), again.settings(0.2)).run()


def test_config_refuses_nonsense() -> None:
    with pytest.raises(UserError, match="`distill`"):
        TrainConfig(distill=1.5)
    with pytest.raises(UserError, match="`bits`"):
        TrainConfig(method="smpq", bits=(4,))
