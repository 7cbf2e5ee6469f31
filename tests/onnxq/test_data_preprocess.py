"""Preprocessing: the maths, the geometry, the JSON and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data import PRESETS, Preprocess, resolve
from passes.core.errors import DataError


def _image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_round_trip(name: str) -> None:
    assert Preprocess.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_normalisation_layout_and_colour() -> None:
    image = _image(5, 4)
    pixels = np.asarray(image, np.float64)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (pixels / 255 - mean) / std
    nchw = Preprocess(mean=mean, std=std, scale=255.0)
    sample = nchw.apply(image)
    assert sample.dtype == np.float32
    assert sample.flags.c_contiguous
    np.testing.assert_allclose(sample, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    nhwc = Preprocess(layout="NHWC", colour="BGR")
    np.testing.assert_array_equal(nhwc.apply(image), pixels[..., ::-1])
    np.testing.assert_array_equal(PRESETS["none"].apply(image), pixels.transpose(2, 0, 1))


def test_resize_keeps_the_aspect_and_crop_is_centred() -> None:
    image = _image(100, 50)
    assert Preprocess(resize_short=20).apply(image).shape == (3, 20, 40)
    assert Preprocess(resize_short=20).apply(image.rotate(90, expand=True)).shape == (3, 40, 20)
    crop = Preprocess(crop=(10, 21)).apply(image)
    np.testing.assert_array_equal(crop, np.asarray(image, np.float32)[20:30, 39:60].transpose(2, 0, 1))
    assert PRESETS["efficientnet-lite"].apply(image).shape == (3, 224, 224)


def test_grey_and_palette_images_become_three_channels() -> None:
    for mode in ("L", "P", "RGBA", "1"):
        assert PRESETS["none"].apply(_image(8, 6).convert(mode)).shape == (3, 6, 8)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{",
        '{"size": 3}',
        '{"layout": "CHW"}',
        '{"std": [1, 0, 1]}',
        '{"mean": [1]}',
        '{"crop": [0, 5]}',
        '{"crop": 224}',
        '{"resize_short": 0}',
        '{"interpolation": "best"}',
        '{"mean": ["a", 1, 1]}',
    ],
)
def test_bad_json_is_one_data_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"p\.json"):
        resolve(path)


def test_resolve(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"crop": [32, 32], "mean": [1, 2, 3]}')
    assert resolve(str(path)) == Preprocess(crop=(32, 32), mean=(1.0, 2.0, 3.0))
    assert resolve(None) is None
    assert resolve(PRESETS["cifar"]) is PRESETS["cifar"]
    with pytest.raises(DataError, match=r"cifar, efficientnet-lite, imagenet, none or FILE\.json"):
        resolve("imagnet")
    with pytest.raises(DataError, match="cannot be read"):
        resolve(tmp_path / "absent.json")


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(DataError, match="smaller than the 32x32 crop"):
        Preprocess(crop=(32, 32)).apply(_image(31, 40))
