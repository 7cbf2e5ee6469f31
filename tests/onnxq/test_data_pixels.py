"""Images of every kind become the same 8-bit pixels, scaled and never clipped; datasets reach workers."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxq.data import Dataset, InputSpec, Preprocess, materialise, open_dataset
from onnxq.data.pixels import decode_image
from passes.core.errors import DataError

GREY = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
INPUTS = [InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def grey(kind: str) -> NDArray[np.uint8]:
    """What every decoded channel must be."""
    return np.where(GREY > 127, 255, 0).astype(np.uint8) if kind == "black and white" else GREY


def wide() -> Image.Image:
    return Image.fromarray(GREY.astype(np.uint16) * 257)


def palette() -> Image.Image:
    """Grey by a palette, one entry of which is transparent."""
    image = Image.fromarray(GREY).convert("P")
    image.info["transparency"] = bytes([0] + [255] * 255)
    return image


def rgb16_png() -> bytes:
    """A PNG with 16 bits a channel, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (GREY.astype(">u2")[..., None] * 257).repeat(3, -1).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


PLAIN = Image.fromarray(GREY)
KINDS = {
    "8-bit grey": encoded(PLAIN, "PNG"),
    "8-bit colour": encoded(PLAIN.convert("RGB"), "PNG"),
    "black and white": encoded(PLAIN.convert("1", dither=Image.Dither.NONE), "PNG"),
    "grey with alpha": encoded(PLAIN.convert("LA"), "PNG"),
    "colour with alpha": encoded(PLAIN.convert("RGBA"), "PNG"),
    "palette with transparency": encoded(palette(), "PNG"),
    "CMYK": encoded(PLAIN.convert("RGB").convert("CMYK"), "TIFF"),
    "16-bit grey": encoded(wide(), "PNG"),
    "16-bit grey TIFF": encoded(wide(), "TIFF"),
    "16-bit grey PGM": b"P5 8 8 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").tobytes(),
    "16-bit colour": rgb16_png(),
    "16-bit colour PPM": b"P6 8 8 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").repeat(3).tobytes(),
    "12-bit grey PGM": b"P5 8 8 4095\n" + (GREY * (4095 / 255)).round().astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_pixels(kind: str) -> None:
    pixels = decode_image(KINDS[kind], kind)
    np.testing.assert_array_equal(pixels, np.repeat(grey(kind)[..., None], 3, axis=2))


def test_preprocessing_of_a_pillow_image_scales_too() -> None:
    sample = Preprocess().apply(wide())
    np.testing.assert_array_equal(sample[0], GREY)


def test_arrays_of_16_bits_are_not_taken_for_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 8, 8, 3), np.uint16))
    with pytest.raises(DataError, match=r"x\.npz.*8-bit images.*save them as uint8"):
        open_dataset(tmp_path / "x.npz", INPUTS, preprocess="none")


# -- the way to a worker ---------------------------------------------------------------------------------

_MODULE = """
import numpy as np
class Rows:
    def __init__(self, seed): self.x = np.random.default_rng(seed).random((3, 3, 8, 8)).astype(np.float32)
    def __len__(self): return 3
    def __getitem__(self, index): return self.x[index], index
def rows(): return Rows(0)
def other_rows(): return Rows(None)
def generator(): yield from ((row, index) for index, row in enumerate(Rows(None).x))
def dataset():
    from onnxq.data import InputSpec, random_dataset
    return random_dataset([InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))], 3, 5)
"""


def _made(kind: str, folder: Path) -> Dataset:
    """A dataset of three samples of every kind that --data takes."""
    x = np.random.default_rng(0).random((3, 3, 8, 8)).astype(np.float32)
    (folder / "set").mkdir()
    if kind in ("images", "zip"):
        for index in range(3):
            Image.fromarray(GREY + np.uint8(index)).convert("RGB").save(folder / "set" / f"{index}.png")
        if kind == "zip":
            with zipfile.ZipFile(folder / "set.zip", "w") as archive:
                for path in sorted((folder / "set").iterdir()):
                    archive.write(path, path.name)
        return open_dataset(folder / ("set.zip" if kind == "zip" else "set"), INPUTS, preprocess="none")
    if kind == "npz":
        np.savez(folder / "x.npz", x=x, y=np.arange(3))
        return open_dataset(folder / "x.npz", INPUTS)
    if kind == "npy":
        np.save(folder / "x.npy", x)
        return open_dataset(folder / "x.npy", INPUTS)
    if kind == "folder of npz":
        for index, row in enumerate(x):
            np.savez(folder / "set" / f"{index}.npz", x=row, y=index)
        return open_dataset(folder / "set", INPUTS)
    (folder / "sent_data.py").write_text(_MODULE)
    return open_dataset(f"sent_data:{kind}", INPUTS)


SENT = ["images", "zip", "npz", "npy", "folder of npz", "rows", "generator", "dataset"]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", SENT)
def test_every_kind_of_data_can_be_sent_to_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, in_memory: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    data = _made(kind, tmp_path).subset([2, 0])
    data = materialise(data, 2**20 if in_memory else 0)
    sent = pickle.loads(pickle.dumps(data))
    assert (sent.name, sent.labelled, len(sent)) == (data.name, data.labelled, 2)
    for ours, theirs in zip(data.batches(1), sent.batches(1), strict=True):
        np.testing.assert_array_equal(ours.inputs["x"], theirs.inputs["x"])
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert sent.fingerprint() == data.fingerprint()
    assert sent.subset([1]).fingerprint() == data.subset([1]).fingerprint()


def test_code_that_gives_other_data_the_second_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would measure on other samples than the rest of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent_data.py").write_text(_MODULE)
    sent = pickle.loads(pickle.dumps(open_dataset("sent_data:other_rows", INPUTS)))
    with pytest.raises(DataError, match="sent_data:other_rows: gives other items when it is called again"):
        next(sent.batches(1))


def test_errors_survive_the_way_from_a_worker() -> None:
    from passes.core.errors import DeviceError, ModelFileError

    for error in (ModelFileError("a.onnx", "cut off"), DeviceError("tvm", "run", "gone", lasting=True)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
