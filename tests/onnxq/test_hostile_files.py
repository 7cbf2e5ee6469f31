"""Data and run files that are wrong in every way: exit code 2, one sentence with the file, nothing left."""

from __future__ import annotations

import gc
import io
import json
import pickle
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper
from PIL import Image

from onnxq.data.limits import LIMIT_VARIABLE

Invoke = Callable[..., Result]
_DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test alone, which is empty at its end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    if any(place.iterdir()):
        gc.collect()  # stands in for the end of the process: an exception may hold a dataset
    assert list(place.iterdir()) == []


def refused(result: Result, name: str, *words: str) -> None:
    """Exit code 2 and one sentence that names the file."""
    assert result.exit_code == 2, result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line and not line.lower().startswith("warning")]
    assert len(lines) == 1, lines
    assert "Traceback" not in result.stderr
    for word in (name, *words):
        assert word in lines[0]


# -- arrays -------------------------------------------------------------------------------------------------


def npy(header: dict[str, Any] | str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = (header if isinstance(header, str) else repr(header)).encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + body


def declared(shape: Any, descr: Any = "<f4", body: bytes = b"\0" * 1536) -> bytes:
    return npy({"descr": descr, "fortran_order": False, "shape": shape}, body)


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Bomb()], object), allow_pickle=True)
    return buffer.getvalue()


class _Bomb:
    """What unpickles to code; the test fails if that is ever run."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


NPY: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "magic alone": b"\x93NUMPY",
    "version 9": b"\x93NUMPY\x09\x00" + b"\0" * 100,
    "header cut": npy({"descr": "<f4"}, b"")[:14],
    "header not a dict": npy("[1, 2]"),
    "header with a call": npy("{'descr': __import__('os').getcwd(), 'shape': (1,)}"),
    "header too deep": npy("(" * 9000 + ")" * 9000),
    "header is huge": npy(" " * 60000),
    "header missing keys": npy({"descr": "<f4", "shape": (2,)}),
    "4 GB header": b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\xff" + b"x" * 50,
    "more than it holds": declared((10**12, 3, 8, 8)),
    "less than it holds": declared((1, 3, 8, 8)),
    "cut off": declared((2, 3, 8, 8))[:-1],
    "overflows 64 bits": declared((2**40, 2**40, 2**40)),
    "negative": declared((-1, 3, 8, 8)),
    "no samples": declared((0, 3, 8, 8), body=b""),
    "scalar": declared((), body=b"\0" * 4),
    "objects": objects(),
    "pickle": pickle.dumps(_Bomb()),
    "texts": declared((2, 3, 8, 8), "<U1"),
    "times": declared((2, 3, 8, 8), "<M8[s]", b"\0" * 3072),
    "structs": declared((192,), [("a", "<f4"), ("b", "<f4")]),
    "complex": declared((1, 3, 8, 8), "<c8"),
    "unknown type": declared((2, 3, 8, 8), "<z9"),
    "void": declared((2, 3, 8, 8), "|V0", b""),
    "wrong shape": declared((6, 8, 8)),
    "bool shape": declared((True, 384)),
}


@pytest.mark.parametrize("case", NPY)
def test_npy(work: Path, invoke: Invoke, case: str) -> None:
    (work / "bad.npy").write_bytes(NPY[case])
    refused(invoke("quantize", "tiny.onnx", "-o", "out.onnx", "--data", "bad.npy"), "bad.npy")
    assert not (work / "out.onnx").exists()


@pytest.mark.parametrize("case", NPY)
def test_npy_in_npz(work: Path, invoke: Invoke, case: str) -> None:
    with zipfile.ZipFile(work / "bad.npz", "w") as archive:
        archive.writestr("x.npy", NPY[case])
    refused(invoke("eval", "tiny.onnx", "--data", "bad.npz"), "bad.npz")


def bomb(size: int, names: int = 1) -> bytes:
    """An archive that declares `size` bytes a member and holds them, as zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(names):
            archive.writestr(f"{number}.npy", b"\0" * size)
    return buffer.getvalue()


def lying(claimed: int, real: bytes) -> bytes:
    """An archive whose member says that it is smaller, or larger, than it is."""
    data = bytearray()
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", real)
    data[:] = buffer.getvalue()
    old = struct.pack("<I", len(real))
    for place in (data.find(old), data.rfind(old)):
        data[place : place + 4] = struct.pack("<I", claimed)
    return bytes(data)


def packed(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x.npy", declared((2, 3, 8, 8)))
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(packed(zipfile.ZIP_DEFLATED))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(mark) + offset] |= 1
    return bytes(data)


ARCHIVES: dict[str, bytes] = {
    "empty": b"",
    "no archive": b"PK\x03\x04 nothing",
    "no members": b"PK\x05\x06" + b"\0" * 18,
    "cut off": packed(zipfile.ZIP_DEFLATED)[:-30],
    "damaged": packed(zipfile.ZIP_DEFLATED).replace(b"x.npy", b"y.npy", 1),
    "bomb": bomb(9_000_000),
    "many small": bomb(900_000, 10),
    "claims less": lying(100, declared((2, 3, 8, 8))),
    "claims more": lying(5000, declared((2, 3, 8, 8))),
    "claims 4 GB": lying(2**32 - 2, declared((2, 3, 8, 8))),
    "bz2": packed(zipfile.ZIP_BZIP2),
    "lzma": packed(zipfile.ZIP_LZMA),
    "encrypted": encrypted(),
    "unknown compression": packed(zipfile.ZIP_DEFLATED).replace(b"\x08\x00", b"\x63\x00"),
    "pickle": pickle.dumps(_Bomb()),
}


@pytest.mark.parametrize("suffix", ["npz", "zip"])
@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, case: str, suffix: str
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "8MB")
    (work / f"bad.{suffix}").write_bytes(ARCHIVES[case])
    more = ["--preprocess", "none"] if suffix == "zip" else []
    refused(invoke("eval", "tiny.onnx", "--data", f"bad.{suffix}", *more), f"bad.{suffix}")


def test_a_bomb_says_how_to_allow_it(work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "8MB")
    (work / "bad.npz").write_bytes(ARCHIVES["bomb"])
    refused(invoke("eval", "tiny.onnx", "--data", "bad.npz"), "bad.npz", f"set {LIMIT_VARIABLE}=9MiB")
    monkeypatch.setenv(LIMIT_VARIABLE, "9MiB")
    refused(invoke("eval", "tiny.onnx", "--data", "bad.npz"), "bad.npz", "cannot be read as an array")
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    refused(invoke("eval", "tiny.onnx", "--data", "bad.npz"), f"{LIMIT_VARIABLE}=much", "is not a size")


# -- images -------------------------------------------------------------------------------------------------


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that declares a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(body)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def image(pixels: Any, kind: str, mode: str | None = None, **more: Any) -> bytes:
    buffer = io.BytesIO()
    made = Image.fromarray(pixels)
    (made.convert(mode) if mode else made).save(buffer, kind, **more)
    return buffer.getvalue()


RGB = np.zeros((8, 8, 3), np.uint8)
FRAMES = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (90, 200)]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
IMAGES: dict[str, bytes] = {
    "empty.png": b"",
    "text.png": b"hello",
    "cut.png": image(RGB, "PNG")[:40],
    "cut.jpg": image(RGB, "JPEG")[:300],
    "cut.tif": image(RGB, "TIFF")[:60],
    "cut.gif": image(RGB, "GIF")[:20],
    "cut.webp": image(RGB, "WEBP")[:20],
    "cut.bmp": image(RGB, "BMP")[:60],
    "bomb.png": png(60_000, 60_000),
    "large.png": png(12_000, 12_000),
    "no-rows.png": png(8, 8),
    "zero.png": png(0, 0),
    "float.tif": image(np.full((8, 8), 0.5, np.float32), "TIFF"),
    "nan.tif": image(np.full((8, 8), np.nan, np.float32), "TIFF"),
    "int32.tif": image(np.full((8, 8), 70_000, np.int32), "TIFF"),
    "moving.gif": image(RGB, "GIF", save_all=True, append_images=FRAMES),
    "moving.png": image(RGB, "PNG", save_all=True, append_images=FRAMES),
    "moving.webp": image(RGB, "WEBP", save_all=True, append_images=FRAMES),
    "pages.tif": image(RGB, "TIFF", save_all=True, append_images=FRAMES),
    "postscript.png": POSTSCRIPT,
    "huge.ppm": b"P6 99999999999999999999 1 255\n",
    "small.png": image(np.zeros((4, 4, 3), np.uint8), "PNG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "100MB")
    (work / "images").mkdir()
    (work / "images" / name).write_bytes(IMAGES[name])
    command = ["quantize", "tiny.onnx", "-o", "out.onnx", "--preprocess", "none", "--data"]
    refused(invoke(*command, "images"), name)
    with zipfile.ZipFile(work / "images.zip", "w") as archive:
        archive.writestr(name, IMAGES[name])
    refused(invoke(*command, "images.zip"), name)
    assert not (work / "out.onnx").exists()


LABELS: dict[str, bytes] = {
    "empty": b"",
    "no number": b"a.png\n",
    "words": b"a.png one\n",
    "negative": b"a.png -1\n",
    "5,000 digits": b"a.png " + b"9" * 5000,
    "too large": b"a.png " + b"9" * 25,
    "absent": b"b.png 0\n",
    "long name": b"b" * 5000 + b" 0\n",
    "NUL": b"a\0.png 0\n",
    "binary": bytes(range(256)),
    "class of no output": b"a.png 77\n",
    "not an image": b"labels.txt 0\n",
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(work: Path, invoke: Invoke, case: str) -> None:
    (work / "images").mkdir()
    (work / "images" / "a.png").write_bytes(image(RGB, "PNG"))
    (work / "images" / "labels.txt").write_bytes(LABELS[case])
    refused(invoke("eval", "tiny.onnx", "--data", "images", "--preprocess", "none"), "images/")


PREPROCESS: dict[str, str] = {
    "empty": "",
    "list": "[]",
    "deep": _DEEP,
    "digits": f'{{"scale": {"9" * 5000}}}',
    "NaN": '{"scale": NaN}',
    "infinite": '{"scale": 1e999}',
    "null scale": '{"scale": null}',
    "text scale": '{"scale": "1"}',
    "zero std": '{"std": [0, 1, 1]}',
    "two means": '{"mean": [0, 1]}',
    "mean of texts": '{"mean": ["a", "b", "c"]}',
    "mean is a number": '{"mean": 3}',
    "huge resize": '{"resize_short": 1000000000}',
    "float resize": '{"resize_short": 2.5}',
    "true resize": '{"resize_short": true}',
    "huge crop": '{"crop": [1000000000, 1]}',
    "crop is an object": '{"crop": {"1": 1}}',
    "unknown key": '{"meen": [0, 0, 0]}',
    "unknown layout": '{"layout": "HWCN"}',
    "layout is a list": '{"layout": ["NCHW"]}',
}


@pytest.mark.parametrize("case", PREPROCESS)
def test_preprocessing_files(work: Path, invoke: Invoke, case: str) -> None:
    (work / "images").mkdir()
    (work / "images" / "a.png").write_bytes(image(RGB, "PNG"))
    (work / "how.json").write_text(PREPROCESS[case])
    refused(invoke("eval", "tiny.onnx", "--data", "images", "--preprocess", "how.json"), "how.json")


def tensor(**more: Any) -> bytes:
    made = numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "x")
    for name, value in more.items():
        setattr(made, name, value)
    return bytes(made.SerializeToString())


def elsewhere() -> bytes:
    made = onnx.TensorProto(name="x", dims=[1, 3, 8, 8], data_type=1)
    made.data_location = onnx.TensorProto.EXTERNAL
    made.external_data.add(key="location", value="tiny.onnx")
    return bytes(made.SerializeToString())


TENSORS: dict[str, bytes] = {
    "text": b"hello",
    "cut": tensor()[:100],
    "no numbers": tensor(raw_data=b""),
    "unknown type": tensor(data_type=99),
    "no type": tensor(data_type=0),
    "huge": onnx.TensorProto(dims=[2**40, 2**40], data_type=1).SerializeToString(),
    "in another file": elsewhere(),
    "texts": numpy_helper.from_array(np.array([["a"]], object)).SerializeToString(),
}


@pytest.mark.parametrize("case", TENSORS)
def test_protobufs(work: Path, invoke: Invoke, case: str) -> None:
    (work / "set").mkdir()
    (work / "set" / "input_0.pb").write_bytes(TENSORS[case])
    refused(invoke("quantize", "tiny.onnx", "-o", "out.onnx", "--data", "set"), "set")
    assert not (work / "out.onnx").exists()


CALLABLES: dict[str, str] = {
    "raises": "def data(): raise RuntimeError('no\\nluck')",
    "raises on import": "raise KeyError(1)",
    "an item raises": "def data():\n    yield from ()\n    raise ValueError",
    "a length raises": "class data:\n    def __getitem__(s, i): raise OSError\n    def __len__(s): return 2",
    "ragged": "def data(): return [[[1, 2], [3]]]",
    "objects": "def data(): yield {'x': [object()]}",
    "number": "def data(): return 3",
    "nothing": "def data(): return iter(())",
    "not callable": "data = 3",
    "absent": "other = 3",
}


@pytest.mark.parametrize("case", CALLABLES)
def test_callables(work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name = f"hostile_{list(CALLABLES).index(case)}"
    (work / f"{name}.py").write_text(CALLABLES[case])
    refused(invoke("eval", "tiny.onnx", "--data", f"{name}:data"), f"{name}:data")
    monkeypatch.syspath_prepend(str(work))


# -- run folders --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny_data: Path) -> Path:
    """A small run, to be copied."""
    from onnxq.tuning import TuneConfig, tune

    folder = tmp_path_factory.mktemp("finished") / "run"
    settings: dict[str, Any] = {
        "model": str(tiny),
        "data": str(tiny_data),
        "calibration_samples": 8,
        "ranking_samples": 2,
        "modes": ("weights",),
        "objectives": "metric,bytes",
        "threads": 1,
        "metric": "agreement",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tune(TuneConfig(**settings), folder)
    return folder


def changed(document: Any, path: str, value: Any) -> Any:
    """The document with one value replaced; `path` as in `candidates.1.name`."""
    found = document = json.loads(json.dumps(document))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        found = found[part]
    if value is KeyError:
        del found[last]
    else:
        found[last] = value
    return document


REPORT_TEXTS: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "cut": lambda text: text[:-100],
    "list": lambda _: "[]",
    "deep": lambda _: _DEEP,
    "digits": lambda text: text.replace('"schema":1', f'"schema":{"9" * 5000}'),
    "binary": lambda _: "\x00\x01",
    "NaN": lambda text: text.replace('"hypervolume":', '"hypervolume":NaN,"x":', 1),
}
REPORT_VALUES: list[tuple[str, Any]] = [
    ("schema", 99),
    ("schema", "x" * 5000),
    ("model", 3),
    ("metric", "beauty"),
    ("metric", ["top1"]),
    ("objectives", "metric"),
    ("objectives", ["metric", "beauty"]),
    ("candidates", {}),
    ("candidates", KeyError),
    ("candidates.1", None),
    ("candidates.1.name", "../../outside"),
    ("candidates.1.name", "/tmp/outside"),
    ("candidates.1.name", "a/b"),
    ("candidates.1.name", "a\\b"),
    ("candidates.1.name", ".."),
    ("candidates.1.name", ".hidden"),
    ("candidates.1.name", "a\0b"),
    ("candidates.1.name", "a" * 300),
    ("candidates.1.name", 5),
    ("candidates.1.name", KeyError),
    ("candidates.1.bytes", -1),
    ("candidates.1.bytes", 10**400),
    ("candidates.1.bytes", "many"),
    ("candidates.1.bytes", True),
    ("candidates.1.metrics", []),
    ("candidates.1.metrics", {"agreement": "good"}),
    ("candidates.1.metrics", {"agreement": None}),
    ("candidates.1.latency", {"ratio": 1}),
    ("candidates.1.status", "great"),
    ("candidates.1.status", {}),
    ("candidates.1.policy", []),
    ("candidates.1.policy", {"layers": {"fc": {"weights": 8}}}),
    ("candidates.1.changed", [1]),
    ("candidates.1.extra", 1),
    ("front", ["../x"]),
    ("front", None),
    ("picks", [{"name": "balanced"}]),
    ("picks.0.candidate", "nobody"),
    ("picks.0.candidate", "../x"),
    ("float", None),
    ("float.metrics", 1),
    ("hypervolume", "large"),
    ("layers", [{"name": "x"}]),
    ("warnings", [1]),
    ("environment", 3),
]


@pytest.mark.parametrize("case", REPORT_TEXTS)
def test_texts_of_reports(work: Path, finished: Path, invoke: Invoke, case: str) -> None:
    shutil.copytree(finished, work / "run")
    path = work / "run" / "report.json"
    path.write_text(REPORT_TEXTS[case](path.read_text()))
    before = sorted(work.rglob("*"))
    refused(invoke("report", "run"), "report.json")
    refused(invoke("build", "run", "balanced", "-o", "out.onnx"), "report.json")
    refused(invoke("report", "run", "run", "-o", "out"), "report.json")
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(("path", "value"), REPORT_VALUES, ids=lambda part: str(part)[:30])
def test_values_of_reports(work: Path, finished: Path, invoke: Invoke, path: str, value: Any) -> None:
    shutil.copytree(finished, work / "run")
    file = work / "run" / "report.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    before = sorted(work.rglob("*"))
    refused(invoke("report", "run"), "report.json")
    refused(invoke("build", "run", "balanced", "-o", "out.onnx"), "report.json")
    assert sorted(work.rglob("*")) == before


CONFIGS: list[tuple[str, Any]] = [
    ("config.model", 3),
    ("config.model", "absent.onnx"),
    ("config.weights", "int8:channel"),
    ("config.weights", ["int99"]),
    ("config.threads", "many"),
    ("config.threads", -1),
    ("config.modes", [3]),
    ("config.racing", "yes"),
    ("config.colour", "red"),
    ("config", {}),
    ("candidates.1.policy", {"layers": {"fc": {"weights": "int99:channel"}}}),
    ("candidates.1.policy", {"layers": {"nobody": {"weights": "int8:channel"}}}),
    ("candidates.1.sha256", "0" * 64),
]


@pytest.mark.parametrize(("path", "value"), CONFIGS, ids=lambda part: str(part)[:30])
def test_what_build_reads_of_a_report(
    work: Path, finished: Path, invoke: Invoke, path: str, value: Any
) -> None:
    shutil.copytree(finished, work / "run")
    file = work / "run" / "report.json"
    document = json.loads(file.read_text())
    name = document["candidates"][1]["name"]
    file.write_text(json.dumps(changed(document, path, value)))
    before = sorted(work.rglob("*"))
    refused(invoke("build", "run", name, "-o", "out.onnx"), "")
    assert sorted(work.rglob("*")) == before


JOURNALS: dict[str, Callable[[list[str]], list[str]]] = {
    "header is a list": lambda lines: ["[]", *lines[1:]],
    "header cut": lambda lines: [lines[0][:20], *lines[1:]],
    "header of texts": lambda lines: ['{"schema":1,"fingerprint":"x"}', *lines[1:]],
    "header of numbers": lambda lines: ['{"schema":1,"fingerprint":{"model":3}}', *lines[1:]],
    "fingerprint pairs": lambda lines: ['{"schema":1,"fingerprint":[["model","x"]]}', *lines[1:]],
    "another schema": lambda lines: ['{"schema":7,"fingerprint":{}}', *lines[1:]],
    "no fingerprint": lambda lines: ['{"schema":1,"fingerprint":{}}', *lines[1:]],
    "line cut": lambda lines: [*lines[:1], lines[1][:30], *lines[2:]],
    "line is a number": lambda lines: [*lines[:1], "3", *lines[1:]],
    "line deep": lambda lines: [*lines[:1], _DEEP, *lines[1:]],
    "line of digits": lambda lines: [*lines[:1], "9" * 5000, *lines[1:]],
    "kind is a list": lambda lines: [*lines[:1], '{"kind":[],"key":"x","payload":1}', *lines[1:]],
    "key is an object": lambda lines: [*lines[:1], '{"kind":"a","key":{},"payload":1}', *lines[1:]],
    "no payload": lambda lines: [*lines[:1], '{"kind":"a","key":"b"}', *lines[1:]],
    "ranges of one": lambda lines: [*lines, '{"kind":"ranges","key":"b","payload":{"x|8":[1]}}', lines[1]],
    "ranges of text": lambda lines: [*lines, '{"kind":"ranges","key":"b","payload":"x"}', lines[1]],
    "hits": lambda lines: [*lines, '{"kind":"hits","key":"b","payload":"xyz"}', lines[1]],
    "last line of another kind": lambda lines: [*lines, '{"kind":"candidate","key":"b","payload":{}}'],
    "name outside": lambda lines: [
        line.replace('"name":"weights-', '"name":"../../weights-') for line in lines
    ],
    "huge number": lambda lines: [line.replace('"bytes":', '"bytes":1e400,"x":', 1) for line in lines],
}


@pytest.mark.parametrize("case", JOURNALS)
def test_journals(work: Path, finished: Path, invoke: Invoke, case: str) -> None:
    shutil.copytree(finished, work / "run")
    path = work / "run" / "journal.jsonl"
    path.write_text("\n".join(JOURNALS[case](path.read_text().splitlines())) + "\n")
    before = sorted(work.rglob("*"))
    refused(invoke("build", "run", "balanced", "-o", "out.onnx"), "run")
    assert sorted(work.rglob("*")) == before


SPACES: dict[str, str] = {
    "empty": "",
    "list": "[]",
    "deep": _DEEP,
    "no tables": "{}",
    "ragged": '{"cost":[[1],[1,2]],"bytes":[],"bops":[],"layers":[],"choices":[],"rest":0}',
    "texts": '{"cost":"x","bytes":[],"bops":[],"layers":[],"choices":[],"rest":0}',
}


@pytest.mark.parametrize("case", SPACES)
def test_tables_of_sensitivities(work: Path, invoke: Invoke, case: str) -> None:
    (work / "run").mkdir()
    (work / "run" / "space-weights.json").write_text(SPACES[case])
    refused(invoke("allocate", "run", "-o", "policy.json"), "space-weights.json")
    assert not (work / "policy.json").exists()


def test_a_run_folder_runs_no_code(work: Path, finished: Path, invoke: Invoke) -> None:
    """Rounding on data opens the data again; what the folder names is not imported without --trust."""
    shutil.copytree(finished, work / "run")
    file = work / "run" / "report.json"
    document = json.loads(file.read_text())
    document["config"] |= {"rounding": "bias", "data": "evil_module:data"}
    (work / "evil_module.py").write_text("open('ran', 'w').close()\ndef data(): return 3\n")
    for spec in ("evil_module:data", "hf:evil"):
        document["config"]["data"] = spec
        file.write_text(json.dumps(document))
        result = invoke("build", "run", document["candidates"][1]["name"], "-o", "out.onnx")
        refused(result, spec, "give --trust")
    assert not (work / "ran").exists()
    document["config"]["data"] = "evil_module:data"
    file.write_text(json.dumps(document))
    name = document["candidates"][1]["name"]
    refused(invoke("build", "run", name, "-o", "out.onnx", "--trust"), "evil_module:data", "gives a int")
    assert (work / "ran").exists()


@pytest.mark.parametrize("name", ["front", "cache", "journal.jsonl", "journal.lock"])
def test_a_run_is_not_written_through_links(work: Path, finished: Path, invoke: Invoke, name: str) -> None:
    """The links lead to places outside of the run folder."""
    shutil.copytree(finished, work / "run")
    target = work / "run" / name
    outside = work / "outside"
    if target.is_dir() or "." not in name:
        shutil.rmtree(target, ignore_errors=True)
        outside.mkdir()
    else:
        target.unlink(missing_ok=True)
        outside.write_bytes(b"precious")
    target.symlink_to(outside)
    command = ["tune", "tiny.onnx", "--data", "data.npz", "-o", "run", "--mode", "weights"]
    refused(invoke(*command), name, "is a link to another place")
    assert outside.is_dir() or outside.read_bytes() == b"precious"


def test_the_cases_are_many() -> None:
    groups: list[Any] = [NPY, NPY, ARCHIVES, ARCHIVES, IMAGES, LABELS, PREPROCESS, TENSORS, CALLABLES]
    groups += [REPORT_TEXTS, REPORT_VALUES, CONFIGS, JOURNALS, SPACES]
    assert sum(map(len, groups)) >= 100
