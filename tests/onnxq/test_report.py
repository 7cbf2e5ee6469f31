"""The report is whole after every candidate, says what it must, needs no network, and its pictures open."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onnxq.files import canonical_json
from onnxq.report import (
    LayerError,
    ReportWriter,
    compare,
    environment,
    load_report,
    make_report,
    plots,
    write_comparison,
    write_report,
)
from onnxq.report.labels import shorten_layer_names
from onnxq.report.pictures import allocation_figure, sensitivity_figure
from onnxq.report.plots import FIGURES, png
from onnxq.search import Candidate, Latency, parse_objectives
from passes.core.errors import OutputError, UserError

_LAYERS = [f"/blocks/blocks.{i // 4}/blocks.{i // 4}.{i % 4}/conv/Conv" for i in range(12)]
_FLOAT = Candidate(
    key="float", name="float", index=-1, strategy="baseline", step=0, mode="float", policy={},
    metrics={"top1": 0.916, "sqnr": float("inf"), "mse": 0.0}, stderr={"top1": 0.009}, samples=1000,
    bytes=4_000_000, latency=Latency(4.0, 3.9, 4.1, 4.0, 1.0, 50), bops=10**12,
)  # fmt: skip


def _candidate(index: int, mode: str = "static", *, top1: float | None = None) -> Candidate:
    noise = random.Random(index)
    value = 0.92 - 0.03 * 0.8**index + noise.gauss(0, 0.002) if top1 is None else top1
    ratio = 0.55 + 0.03 * index
    return Candidate(
        key=f"{mode}{index}",
        name=f"{mode}-{index:03}",
        index=index,
        strategy="ranking",
        step=index,
        mode=mode,
        policy={name: {"weight": {"format": "int", "bits": 8}} for name in _LAYERS[index:]},
        changed=tuple(_LAYERS[:index]),
        metrics={"top1": value, "sqnr": 30.0 + index, "mse": 0.01 / (index + 1)},
        stderr={"top1": 0.009},
        samples=1000,
        bytes=1_050_000 + 240_000 * index,
        latency=Latency(4 * ratio, 3.9 * ratio, 4.1 * ratio, 4.0, ratio, 50),
        bops=10**11 * (index + 1),
        sha256="0" * 64,
    )


def _report(candidates: list[Candidate] | None = None, **changes: Any) -> dict[str, Any]:
    if candidates is None:
        candidates = [_candidate(i, mode) for mode in ("static", "dynamic") for i in range(12)]
        candidates[5] = replace(candidates[5], status="failed", error="<b>device</b> lost", metrics={})
        candidates[6] = replace(candidates[6], complete=False, samples=64)
        candidates[0] = replace(candidates[0], metrics={"top1": 0.1, "sqnr": 1.0, "mse": 9.0})
    rows = [
        LayerError(name, "Conv", 10.0 ** -(i % 4), 10.0 ** -(i % 5), i / 12) for i, name in enumerate(_LAYERS)
    ]
    arguments: dict[str, Any] = {
        "model": "tiny",
        "candidates": candidates,
        "objectives": parse_objectives("metric,bytes,latency"),
        "metric": "top1",
        "baseline": _FLOAT,
        "layers": rows,
        "config": {"seed": 0, "data": "models/data", "calibration": {"method": "minmax"}},
        "environment": environment(["fma", "avx2"]),
        "warnings": ["calibrated with random data"],
        "notes": ["one candidate was stopped early"],
    }
    return make_report(**(arguments | changes))


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that differ with the report and cost nothing, for tests that write many reports."""
    monkeypatch.setattr(plots, "FIGURES", dict.fromkeys(FIGURES, lambda report: report))
    monkeypatch.setattr(plots, "png", lambda report: canonical_json(report["front"]).encode())


@pytest.mark.usefixtures("quick_figures")
def test_json_holds_everything_and_round_trips(tmp_path: Path) -> None:
    report = _report()
    write_report(tmp_path, report)
    loaded = load_report(tmp_path)
    assert loaded == json.loads(canonical_json(report))
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == canonical_json(report) + "\n"
    back = [Candidate.from_json(document) for document in loaded["candidates"]]
    assert back[3].policy == _candidate(3).policy
    assert loaded["environment"]["cpu_flags"] == ["avx2", "fma"]
    assert {"onnxq", "onnx", "onnxruntime", "numpy"} == set(loaded["environment"]["versions"])
    assert [pick["name"] for pick in loaded["picks"]] == ["best-accuracy", "smallest", "balanced"]
    assert {pick["candidate"] for pick in loaded["picks"]} <= set(loaded["front"])
    assert 0 < loaded["hypervolume"] < 1


def test_page_says_what_it_must_and_needs_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    report = _report()
    write_report(run, report)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert report["summary"] in page
    assert "Warning: calibrated with random data" in page
    for pick in report["picks"]:
        assert f"-o {pick['candidate']}.onnx" in page
        assert pick["reason"].replace(" %", "\u00a0%") in page
    assert "onnxq build &#39;" in page  # a folder with a space is quoted for the shell
    for candidate in report["candidates"]:
        assert f'data-value="{candidate["name"]}"' in page
    assert "&lt;b&gt;device&lt;/b&gt; lost" in page
    assert "<b>device</b>" not in page
    assert "stopped after 64 samples" in page
    assert all(layer in page for layer in _LAYERS)
    assert page.count("data:image/png;base64,") == 3
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]+\.|@import|<script src|<link rel=.stylesheet", without_pictures)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("metric", ["top1", "sqnr", "mse"])
def test_pictures_open_and_are_of_sensible_size(metric: str) -> None:
    report = _report(metric=metric)
    for name, draw in FIGURES.items():
        data = png(draw(report))
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert 1000 <= image.width <= 1600, name
            assert 400 <= image.height <= 1600, name
            assert len(image.convert("L").getcolors() or range(256)) > 20, name
        assert png(draw(report)) == data, f"{name} differs from run to run"


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        [_candidate(1)],
        [_candidate(1), _candidate(2)],
        [replace(_candidate(1), status="failed", error="lost", metrics={}, latency=None)],
        [replace(_candidate(i), latency=None, bops=None, stderr={}) for i in range(3)],
        [replace(_candidate(1), mode="weights-only")],
    ],
)
def test_any_number_of_candidates_is_a_valid_report(tmp_path: Path, candidates: list[Candidate]) -> None:
    write_report(tmp_path, _report(candidates, layers=[LayerError("conv", "Conv")] if candidates else []))
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert load_report(tmp_path)["summary"]
    assert (tmp_path / "errors.png").exists() == bool(candidates)  # drawn where layers were measured


def test_many_layers_are_not_named_on_the_axis() -> None:
    rows = [LayerError(f"layer{i}", "Conv", 0.0, 0.1, 0.5) for i in range(90)]
    axes = FIGURES["errors.png"](_report(layers=rows)).axes[-1]
    assert axes.get_xlabel().startswith("layer")


def test_summary_sentences() -> None:
    static = replace(_candidate(2, top1=0.912), bytes=1_000_000, latency=Latency(2, 2, 2, 4, 0.5, 9))
    assert _report([static])["summary"] == (
        "static-002 is 4.0x smaller and 2.0x faster than float at 91.2 % top-1 (float 91.6 %)."
    )
    slow = replace(static, latency=Latency(6, 6, 6, 4, 1.5, 9))
    assert "4.0x smaller and 1.5x slower" in _report([slow])["summary"]
    same = replace(static, latency=Latency(4, 4, 4, 4, 1.01, 9))
    assert "static-002 is 4.0x smaller than float" in _report([same])["summary"]
    failed = replace(static, status="failed", error="device lost", metrics={})
    assert (
        _report([failed])["summary"]
        == "No candidate could be measured so far; static-002 failed: device lost"
    )
    assert _report([])["summary"] == "No candidate has been measured yet."


@pytest.mark.usefixtures("quick_figures")
def test_pictures_are_drawn_now_and_then(tmp_path: Path) -> None:
    now = [0.0]
    writer = ReportWriter(tmp_path, plot_every_s=10, clock=lambda: now[0])
    picture = tmp_path / "pareto.png"

    def drawn(**options: Any) -> bool:
        picture.write_bytes(b"old")
        writer.write(_report([_candidate(1)]), **options)
        assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/png;base64,") == 3
        return picture.read_bytes() != b"old"

    assert drawn()
    now[0] = 9.0
    assert not drawn()
    assert drawn(final=True)
    now[0] = 20.0
    assert drawn()


class _Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("fatal", range(1, 16))
def test_killed_between_every_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """Die at each fsync and rename of the second report: every file is the old one or the new one."""
    old, new = _report([_candidate(1)]), _report([_candidate(1), _candidate(2)])
    write_report(tmp_path, old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(tmp_path / "new", new)
    after = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    calls = 0
    real_fsync, real_replace = os.fsync, os.replace

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise _Killed

    def fsync(descriptor: int) -> None:
        count()
        real_fsync(descriptor)

    def rename(source: Any, target: Any) -> None:
        count()
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(_Killed):
        write_report(tmp_path, new)
    monkeypatch.undo()
    for name, content in before.items():
        found = (tmp_path / name).read_bytes()
        if name == "report.html":
            assert found == content or b"static-002" in found
        else:
            assert found in (content, after[name])
    assert load_report(tmp_path)["model"] == "tiny"


@pytest.mark.usefixtures("quick_figures")
def test_disk_full_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, _report([_candidate(1)]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"report\.json: cannot be written: No space left"):
        write_report(tmp_path, _report())
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder"),
        ("{", "is not a report"),
        ("[]", "report schema None"),
        ('{"schema": 99}', "report schema 99"),
    ],
)
def test_bad_run_folders(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_report(tmp_path)


def test_comparison(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b")]
    write_report(runs[0], _report(), plots=False)
    write_report(runs[1], _report([_candidate(i) for i in range(4)], warnings=[]), plots=False)
    comparison = write_comparison(runs, tmp_path / "out")
    assert len(comparison["rows"]) == 6
    assert list(comparison["fronts"]) == [str(run) for run in runs]
    assert comparison["warnings"] == [f"{runs[0]}: calibrated with random data"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8")) == comparison
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert all(row["candidate"] in page for row in comparison["rows"])
    with Image.open(tmp_path / "out" / "compare.png") as image:
        assert image.width >= 1000


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    write_report(tmp_path / "a", _report([_candidate(1)]), plots=False)
    write_report(tmp_path / "b", _report([_candidate(1)], metric="sqnr"), plots=False)
    write_report(tmp_path / "empty", _report([]), plots=False)
    with pytest.raises(UserError, match="sqnr and top1"):
        compare([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="no run folder"):
        compare([])
    assert len(write_comparison([tmp_path / "b"], tmp_path / "o1")["rows"]) == 3
    assert write_comparison([tmp_path / "empty"], tmp_path / "o2")["rows"] == []


def test_layer_names_are_shortened() -> None:
    assert shorten_layer_names(["/net/a.0/a.0.1/conv/Conv", "/net/b/dw/Conv"]) == ["a.0.1/conv", "b/dw"]
    assert shorten_layer_names(["/only/Conv"]) == ["only/Conv"]
    assert shorten_layer_names(["a", "b"]) == ["a", "b"]
    (long,) = shorten_layer_names(["x" * 80])
    assert len(long) <= 30


# Each broke a picture once, or could: formulas, line breaks, letters that no font has, markup, right to left.
_HOSTILE = (
    "a$b^_$c", "x\ny", "w" * 5000, "層畳み込み", "<script>alert(1)</script>", "\\alpha$\\frac{", "$$", "$x$",
    "", "tab\there", "e\u0301\u202e", "\x00z", "\u05e9\u05dc\u05d5\u05dd", "\\$x$", "\x1b[31mred",
)  # fmt: skip


def test_any_name_of_a_layer_or_model_is_drawn() -> None:
    """Warnings are errors here, those of missing letters included."""
    layers = [
        {"name": n, "op_type": "Conv", "qdq_error": 0.1, "xmodel_error": 0.2, "score": 0.3} for n in _HOSTILE
    ]
    costs = {"gse4": [1.0] * len(layers)}
    for model in ("m$^_$", "\n$\\frac{"):
        drawn = [
            FIGURES["errors.png"]({"model": model, "layers": layers}),
            sensitivity_figure(model, _HOSTILE, costs),
            allocation_figure(model, _HOSTILE, {"pick$^_$": [4] * len(layers)}, {}),
        ]
        assert all(png(figure).startswith(b"\x89PNG") for figure in drawn)


def test_names_from_outside_are_escaped_in_the_page_and_the_comparison(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    report = {**_report([_candidate(1)]), "model": script + "$^_$", "notes": [script], "warnings": [script]}
    report["layers"] = [
        {"name": script, "op_type": script, "qdq_error": 0.1, "xmodel_error": None, "score": None}
    ]
    run = tmp_path / "run$^_$"
    write_report(run, report)
    write_comparison([run], tmp_path / "out")
    for page in (run / "report.html", tmp_path / "out" / "compare.html"):
        assert script not in page.read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")
