"""Bad input: one clear sentence, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper, parser
from PIL import Image

Invoke = Callable[..., Result]
TUNE = (
    "--data",
    "data.npz",
    "--calibration-samples",
    "10",
    "--objectives",
    "metric,bytes",
)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(invoke: Invoke, work: Path) -> Callable[..., str]:
    """Run a command that must be refused in the promised way; gives the sentence."""

    def run(*args: object) -> str:
        before = snapshot(work)
        result = invoke(*args)
        assert result.exit_code == 2, f"{result.exit_code}: {result.output}"
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: "), result.stderr
        sentence = result.stderr.removeprefix("Error: ").strip()
        assert "\n" not in sentence
        assert 20 < len(sentence) < 500, sentence
        assert snapshot(work) == before, "nothing may be written"
        return sentence

    return run


Refused = Callable[..., str]
COMMANDS: dict[str, tuple[str, ...]] = {
    "info": ("info", "M"),
    "fold": ("fold", "M"),
    "smooth": ("smooth", "M"),
    "quantize": ("quantize", "M", "--data", "data.npz"),
    "apply": ("apply", "simplify", "M"),
    "sensitivity": ("sensitivity", "M", "--data", "data.npz"),
    "tune": ("tune", "M", *TUNE, "-o", "run"),
    "eval": ("eval", "M", "--data", "data.npz"),
    "bench": ("bench", "M"),
    "golden": ("golden", "update", "simplify", "M", "g.txt"),
    "policy": ("policy", "M", "-o", "p.json"),
}
BUILDERS = ("fold", "smooth", "quantize", "apply", "sensitivity", "tune")


def on(command: str, model: str) -> list[str]:
    return [model if arg == "M" else arg for arg in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_file(refused: Refused, command: str) -> None:
    assert "none.onnx: no such file" in refused(*on(command, "none.onnx"))


@pytest.mark.parametrize("command", COMMANDS)
def test_truncated_model(refused: Refused, work: Path, command: str) -> None:
    whole = Path("tiny.onnx").read_bytes()
    Path("half.onnx").write_bytes(whole[: len(whole) // 2])
    assert "half.onnx: is not an ONNX model, or it is truncated" in refused(*on(command, "half.onnx"))


@pytest.mark.parametrize("command", COMMANDS)
def test_text_called_onnx(refused: Refused, work: Path, command: str) -> None:
    Path("text.onnx").write_text("This is no model.\n" * 10)
    assert "text.onnx: is not an ONNX model" in refused(*on(command, "text.onnx"))


def foreign(path: str) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[N,3,8,8] x) => (float[N,3,8,8] y) '
        "{ [mine] y = acme.Frobnicate(x) }"
    )
    onnx.save(proto, path)


@pytest.mark.parametrize("command", [*BUILDERS, "eval", "bench"])
def test_unknown_domain(refused: Refused, work: Path, command: str) -> None:
    foreign("acme.onnx")
    assert "node 'mine' uses the op acme::Frobnicate" in refused(*on(command, "acme.onnx"))


@pytest.mark.parametrize("command", ["quantize", "tune", "sensitivity", "policy"])
def test_no_quantizable_layer(refused: Refused, work: Path, command: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }'
    )
    onnx.save(parser.parse_model(text), "relu.onnx")
    assert "has no quantizable layer" in refused(*on(command, "relu.onnx"))


def with_data(command: str, *data: str) -> list[str]:
    """The command with other data."""
    args = on(command, "tiny.onnx")
    at = args.index("--data")
    return [*args[:at], *data, *args[at + 2 :]]


READERS = ("quantize", "sensitivity", "tune", "eval")


@pytest.mark.parametrize("command", READERS)
def test_empty_data_folder(refused: Refused, work: Path, command: str) -> None:
    Path("empty").mkdir()
    words = "empty: the folder has no test_data_set folders, images or .npz files"
    assert words in refused(*with_data(command, "--data", "empty"))


@pytest.mark.parametrize("command", READERS)
def test_missing_data(refused: Refused, command: str) -> None:
    assert "nowhere: the data does not exist" in refused(*with_data(command, "--data", "nowhere"))


@pytest.mark.parametrize("command", ["tune", "eval"])
def test_labels_out_of_range(refused: Refused, work: Path, command: str) -> None:
    x = np.load("data.npz")["x"]
    np.savez("wrong.npz", x=x, y=np.arange(len(x)) % 5)
    sentence = refused(*with_data(command, "--data", "wrong.npz"))
    assert "label 4 is outside 0..3" in sentence
    assert "wrong.npz" in sentence


def picture(path: Path, size: int = 8) -> None:
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)


@pytest.mark.parametrize("command", READERS)
def test_image_that_is_none(refused: Refused, work: Path, command: str) -> None:
    Path("images").mkdir()
    for index in range(4):
        (Path("images") / f"{index}.png").write_text("no picture")
    assert "not a readable image" in refused(*with_data(command, "--data", "images", "--preprocess", "cifar"))


@pytest.mark.parametrize("command", READERS)
def test_shape_mismatch(refused: Refused, work: Path, command: str) -> None:
    np.savez("large.npz", x=np.zeros((8, 3, 16, 16), np.float32), y=np.zeros(8, np.int64))
    sentence = refused(*with_data(command, "--data", "large.npz"))
    assert "shape 3x16x16 but model input 'x' takes 3x8x8" in sentence


def test_images_without_preprocess(refused: Refused, work: Path) -> None:
    Path("images").mkdir()
    picture(Path("images/a.png"))
    assert "images need --preprocess" in refused("eval", "tiny.onnx", "--data", "images")


@pytest.mark.parametrize("command", ["quantize", "tune"])
def test_selector_without_match(refused: Refused, command: str) -> None:
    sentence = refused(*on(command, "tiny.onnx"), "--exclude", "wied")
    assert "selector 'wied' matches no layer; near names: wide" in sentence


def test_smooth_selector_without_match(refused: Refused) -> None:
    assert "selector 'dx' matches no layer" in refused("smooth", "tiny.onnx", "--layers", "dx")


@pytest.mark.parametrize("command", ["fold", "smooth", "quantize", "apply", "sensitivity", "tune"])
def test_unwritable_output(refused: Refused, work: Path, command: str) -> None:
    Path("file").write_text("in the way")
    args = on(command, "tiny.onnx")
    args = args[: args.index("-o")] if "-o" in args else args
    assert "cannot be written" in refused(*args, "-o", "file/below/out.onnx")


@pytest.mark.parametrize("call", ["replace", "fsync", "write_bytes"])
@pytest.mark.parametrize("command", ["fold", "smooth", "quantize", "apply"])
def test_disk_full(refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str, call: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(os, call, full)
        if call == "replace":
            monkeypatch.setattr(Path, "replace", full)
    sentence = refused(*on(command, "tiny.onnx"), "-o", "new/folder/out.onnx")
    assert "No space left on device" in sentence
    assert "out.onnx" in sentence


def test_disk_full_while_tuning(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends a run with one sentence; what was finished stays valid and is taken up again."""
    real, calls = os.fsync, {"left": 12}

    def full(descriptor: int) -> None:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = invoke(*on("tune", "tiny.onnx"))
    assert result.exit_code == 2, result.output
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.output
    monkeypatch.undo()
    os.chdir(work)
    lines = Path("run/journal.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    assert invoke(*on("tune", "tiny.onnx")).exit_code == 0


def test_resume_with_another_model(invoke: Invoke, refused: Refused, work: Path) -> None:
    assert invoke(*on("tune", "tiny.onnx"), "--mode", "weights").exit_code == 0
    other = onnx.load("tiny.onnx")
    other.graph.initializer[0].CopyFrom(
        helper.make_tensor("w1", onnx.TensorProto.FLOAT, (16, 3, 3, 3), np.ones(432, np.float32))
    )
    onnx.save(other, "other.onnx")
    sentence = refused(*on("tune", "other.onnx"), "--mode", "weights")
    assert "model was" in sentence
    assert "--fresh" in sentence
    assert "--seed was 0 and is now 1" in refused(
        *on("tune", "tiny.onnx"), "--mode", "weights", "--seed", "1"
    )
    assert "is not the model that run was tuned from" in refused(
        "build", "run", "balanced", "-o", "x.onnx", "--model", "other.onnx"
    )
    assert "candidate 'weights-999' is not in the run" in refused(
        "build", "run", "weights-999", "-o", "x.onnx"
    )


def test_unknown_pass(refused: Refused) -> None:
    assert "unknown pass 'simplfy'; did you mean simplify?" in refused("apply", "simplfy", "tiny.onnx")
    assert "no option 'sight'" in refused("apply", "smooth{sight=output}", "tiny.onnx")
    assert "no such recipe file" in refused("apply", "steps.recipe", "tiny.onnx")


def test_static_without_data(refused: Refused) -> None:
    sentence = refused("quantize", "tiny.onnx")
    assert re.search("needs? calibration data; give --data", sentence)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "int9"), "2 to 8 or 16 bits"),
        (("--weights", "gse9"), "a GSE scheme has 2 to 8 bits"),
        (("--weights", "tcq6"), "a TCQ scheme has 2 to 5 bits, not 6"),
        (("--weights", "tcq3:block32"), "one scale per channel, and nothing else"),
        (("--weights", "utcq3"), "one scale per channel, and nothing else"),
        (("--weights", "tcq3", "--standard"), "no form in ONNX's own types"),
        (("--activations", "tcq3"), "a trellis holds weights, no activations"),
        (("--weights", "gse6:channel"), "groups that share an exponent"),
        (("--weights", "gse6", "--granularity", "tensor"), "groups that share an exponent"),
        (("--weights", "int8:tensor", "--granularity", "channel"), "contradict each other"),
        (("--activations", "int8:channel"), "one scale per tensor"),
        (("--calibration", "magic"), "calibration method"),
        (("--preprocess", "imagenett"), "preprocessing imagenett is unknown"),
        (("--policy", "none.json"), "the policy cannot be read"),
        (("--policy", "tiny.onnx"), "not a text file"),
        (("-o", "tiny.onnx"), "is the input itself"),
        (("--config", "none.json"), "the configuration cannot be read"),
        (("--config", "data.npz"), "not a text file"),
    ],
)
def test_options_of_quantize(refused: Refused, options: tuple[str, ...], words: str) -> None:
    assert words in refused("quantize", "tiny.onnx", "--data", "data.npz", *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strategy", "magic"), "--strategy magic"),
        (("--mode", "warm"), "--mode warm"),
        (("--metric", "top2"), "unknown metric"),
        (("--metric-floor", "75"), "is a fraction"),
        (("--objectives", "metric"), "at least two"),
        (("--weights", "int99"), "2 to 8 or 16 bits"),
        (("--strategy", "threshold", "--tau", "-1"), "--tau -1: must not be negative"),
        (("--strategy", "ilp", "--front", "0"), "--front 0: must be 1 or more"),
        (("--precision", "-0.1"), "--precision -0.1: must not be negative"),
        (("--permutations", "0"), "--permutations 0: must be 1 or more"),
        (("--strategy", "nsga2", "--generations", "0"), "--generations 0: must be 1 or more"),
        (("--strategy", "shapley"), "needs at least two --weights schemes"),
        (("--strategy", "ilp", "--budget", "1kB"), "the smallest file of this search space"),
        (("--strategy", "auto", "--bops-budget", "7"), "--bops-budget 7: the cheapest policy"),
        (("--strategy", "ranking", "--bops-budget", "7"), "--bops-budget: ranking knows no limits"),
        (("--strategy", "ranking", "--budget", "9MB"), "--budget: ranking knows no limits"),
        (("--budget", "1kB"), "the smallest file of this search space"),
        (("--strategy", "ilp", "--tau", "0.1"), "--tau: ilp knows no tau"),
        (("--strategy", "ilp", "--cost-limit", "latency=3"), "there is none; --costs brings them"),
        (("--strategy", "ilp", "--costs", "none.json"), "the table of costs cannot be read"),
        (("--strategy", "ilp", "--costs", "data.npz"), "not a text file"),
        (("--strategy", "ranking", "--activations", "uint4,uint8"), "ranking searches weights alone"),
        (("--strategy", "ilp", "--activations", "uint4,uint99"), "2 to 8 or 16 bits"),
    ],
)
def test_options_of_tune(refused: Refused, options: tuple[str, ...], words: str) -> None:
    assert words in refused("tune", "tiny.onnx", *TUNE, "-o", "run", *options)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "quantize --policy p.json --weights int4",
            "--weights: nothing here reads it; it goes without",
        ),
        ("quantize --policy p.json --granularity tensor", "--granularity: nothing here reads it"),
        (
            "quantize --activations float --damping 0.3",
            "reads it; it goes with --rounding gptq, adaround or",
        ),
        ("quantize --activations float --brecq-steps 9", "--brecq-steps: nothing here reads it"),
        ("quantize --activations float --smooth-layers first", "it goes with --smooth output or input"),
        ("tune --data data.npz -o run --damping 0.3", "it goes with --rounding gptq or adaround"),
        ("tune --data data.npz -o run --mode weights --activations uint4", "it goes with --mode static"),
        ("tune --data data.npz -o run --mode weights --calibration entropy", "it goes with --mode static"),
        ("tune --data data.npz -o run --smooth-layers first", "--smooth-layers: nothing here reads it"),
        ("tune --data data.npz -o run --latency-every 3", "it goes with --objectives latency@*"),
        ("tune --data data.npz -o run --objectives metric,bytes --latency-runs 3", "--latency-runs: nothing"),
        ("tune --data data.npz -o run --permutations 3", "it goes with --strategy shapley"),
        ("tune --data data.npz -o run --precision 0.1", "threshold, ilp, shapley, nsga2 or auto"),
        ("tune --data data.npz -o run --strategy ilp --ranking-samples 9", "it goes with --strategy ranking"),
        ("tune --data data.npz -o run --budget 1MB --front 9", "it goes without --budget"),
        ("tune --data data.npz -o run --random-calibration --calibration-data d", "without --random-calib"),
        ("quantize --activations dynamic --calibration entropy", "--calibration: nothing here reads it"),
        ("quantize --random-calibration --data data.npz", "it goes without --random-calibration"),
        ("sensitivity --data data.npz --precision 0.1", "--precision: nothing here reads it"),
        ("sensitivity --data data.npz --schemes gse4 --weights int4", "--weights: nothing here reads it"),
        ("allocate --tau 0.1", "it goes with --strategy threshold"),
        ("allocate --strategy threshold --tau 0.1 --front 3", "--front: nothing here reads it"),
        ("bench --preprocess cifar", "it goes with --data"),
        ("quantize --activations float --limit 9", "it goes with --data or --calibration-data"),
        ("train --data data.npz --quantizer lsq", "it goes with --method qat"),
        ("train --data data.npz --temperature 2", "it goes with --distill"),
        ("train --data data.npz --optimizer adamw --momentum 0.5", "it goes with --optimizer sgd"),
        ("train --data data.npz --method qat --lambda 0.1", "--lambda: nothing here reads it"),
        (
            "tune --data data.npz -o run --workers 2 --scheduler tcp://h:1",
            "it goes without --workers",
        ),
    ],
)
def test_options_that_nothing_reads(refused: Refused, typed: str, words: str) -> None:
    command, *options = typed.split()
    assert words in refused(command, "tiny.onnx", *options)


def test_a_configuration_may_hold_more_than_is_read(invoke: Invoke, work: Path) -> None:
    Path("c.json").write_text(json.dumps({"damping": "0.3", "smooth-layers": "first"}))
    arguments = ("quantize", "tiny.onnx", "--activations", "float", "--config", "c.json", "-o", "q.onnx")
    assert invoke(*arguments).exit_code == 0


def test_policy_of_another_model(refused: Refused, work: Path) -> None:
    Path("p.json").write_text(json.dumps({"layers": {"elsewhere": {"weights": "int8"}}}))
    assert "first 'elsewhere'" in refused("quantize", "tiny.onnx", "--policy", "p.json")
    Path("p.json").write_text("{}")
    assert "p.json: is no policy" in refused("quantize", "tiny.onnx", "--policy", "p.json")


def test_no_run_folder(refused: Refused) -> None:
    assert "is not a run folder" in refused("report", "none")
    assert "is not a run folder" in refused("build", "none", "balanced")


def test_unlabelled_needs_a_reference(refused: Refused, work: Path) -> None:
    np.save("x.npy", np.load("data.npz")["x"])
    assert "give --reference" in refused("eval", "tiny.onnx", "--data", "x.npy")


def test_unexpected_errors_name_the_type(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxq.inspection

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(onnxq.inspection, "describe", broken)
    result = invoke("info", "tiny.onnx")
    assert result.exit_code == 1
    assert (
        result.stderr
        == "Error: unexpected ZeroDivisionError: division by zero (onnxq --debug ... shows where)\n"
    )
    assert isinstance(invoke("--debug", "info", "tiny.onnx").exception, ZeroDivisionError)


def test_interrupt_says_how_to_resume(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.tuning import measure

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure.Measurer, "measure", interrupted)
    result = invoke(*on("tune", "tiny.onnx"))
    assert result.exit_code == 130
    assert (
        "Interrupted. What is finished is safe in run; start the same command again to go on."
        in result.stderr
    )


def test_a_budget_that_is_no_size(invoke: Invoke, work: Path) -> None:
    result = invoke("tune", "tiny.onnx", *TUNE, "-o", "run", "--budget", "2.4 bananas")
    assert result.exit_code == 2
    assert "is no size; write 2.4MB" in result.stderr


def test_no_table_to_allocate_from(refused: Refused, work: Path) -> None:
    Path("broken").mkdir()
    assert "holds no sensitivities" in refused("allocate", "broken")
    for text in ("{", "[]", "{}", '{"layers": ["a"], "choices": [], "cost": 1}'):
        Path("broken/space-weights.json").write_text(text)
        assert "is not a table of sensitivities" in refused("allocate", "broken")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strategy", "nsga2"), "--strategy nsga2: is not one of ilp, threshold"),
        (("--strategy", "threshold", "--tau", "-1"), "must not be negative"),
        (("--strategy", "threshold", "--bits", "four"), "are whole numbers"),
        (("--strategy", "threshold", "--bits", "5"), "no choice of 5 bits"),
        (("--budget", "1kB"), "the smallest file of this search space"),
        (("--bops-budget", "1", "--budget", "1MB"), "--bops-budget 1: the cheapest policy"),
        (("--cost-limit", "latency=3"), "there is none; --costs brings them"),
        (("--over", "watts"), "--over watts: is not one of bytes, bops"),
        (("--front", "4", "-o", "p.json"), "do not fit one file"),
    ],
)
def test_options_of_allocate(refused: Refused, work: Path, options: tuple[str, ...], words: str) -> None:
    from onnxq.public import open_dataset
    from onnxq.tuning.sensitivities import sensitivities
    from passes.graph.model import load

    model = load("tiny.onnx")
    Path("table").mkdir()
    sensitivities(model, open_dataset("data.npz", model, limit=8), ["gse2", "gse4"], "table")
    assert words in refused("allocate", "table", *options)


def test_schemes_of_sensitivity(refused: Refused) -> None:
    options = ("sensitivity", "tiny.onnx", "--data", "data.npz", "--schemes")
    assert "is no scheme" in refused(*options, "gsee4")
    assert "2 to 8 bits" in refused(*options, "gse9")
    assert "smoothing is ~input or ~output" in refused(*options, "gse4~sideways")
    assert "one scale per tensor" in refused(*options, "gse4/uint8:channel")
    assert "and so does --with-activations" in refused(*options, "gse4/uint8", "--with-activations", "uint4")
    assert "it goes with --schemes" in refused(*options[:-1], "--with-activations", "uint4")


@pytest.mark.parametrize("damping", ["0", "-1", "nan", "inf", "much"])
def test_damping_that_is_none(refused: Refused, damping: str) -> None:
    for command in (
        ("quantize", "tiny.onnx", "-o", "out.onnx"),
        ("apply", "simplify", "tiny.onnx", "-o", "out.onnx"),
        ("tune", "tiny.onnx", "--data", "data.npz", "-o", "run"),
    ):
        said = refused(*command, "--damping", damping)
        assert f"'{damping}' is neither auto nor a number above 0" in said
