"""From an image to a model input: resize, centre crop, then x = (pixel / scale - mean) / std.

Preprocessing is always explicit: a preset name, a JSON file or a `Preprocess`, never guessed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq.data.limits import check_unpacked
from onnxq.data.pixels import to_rgb
from onnxq.documents import each, integer, number, optional, record, text
from passes.core.errors import DataError
from passes.graph.jsontext import parse_json

__all__ = ["PRESETS", "Preprocess", "resolve"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Layout = Literal["NCHW", "NHWC"]
Colour = Literal["RGB", "BGR"]


# Pixels of a side; more is a mistake, and would fill the memory.
_MOST = 2**15
_THREE = each(number)
_SHAPE = record(
    {
        "resize_short": optional(integer),
        "crop": optional(each(integer)),
        "interpolation": text,
        "mean": _THREE,
        "std": _THREE,
        "scale": number,
        "layout": text,
        "colour": text,
    }
)


@dataclass(frozen=True)
class Preprocess:
    """How one image becomes one float32 sample.

    resize_short: new length of the short side in pixels, aspect ratio kept; None keeps the size.
    crop: (height, width) of the centre crop in pixels; None keeps the whole image.
    mean, std: per channel in the order of `colour`, in units of pixel / scale.
    scale: what a 0..255 pixel is divided by first.
    layout: NCHW gives samples of shape (3, height, width), NHWC (height, width, 3).
    """

    resize_short: int | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    layout: Layout = "NCHW"
    colour: Colour = "RGB"

    def __post_init__(self) -> None:
        """Raise DataError for a value that no image could be prepared with."""
        try:
            _SHAPE(vars(self), "")
        except ValueError as error:
            raise DataError(f"preprocessing: {error}; correct it.") from None
        for field, kind in (("interpolation", Interpolation), ("layout", Layout), ("colour", Colour)):
            if getattr(self, field) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise DataError(f"preprocessing: {field} is {getattr(self, field)!r}; use one of {choices}.")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std or self.scale == 0:
            raise DataError(
                "preprocessing: mean and std take three numbers each; std and scale must not be 0."
            )
        if self.crop is not None and (
            len(self.crop) != 2 or not 1 <= min(self.crop) <= max(self.crop) <= _MOST
        ):
            raise DataError(
                f"preprocessing: crop is {self.crop}; give [height, width] of 1 to {_MOST} pixels, or null."
            )
        if self.resize_short is not None and not 1 <= self.resize_short <= _MOST:
            raise DataError(
                f"preprocessing: resize_short is {self.resize_short}; give 1 to {_MOST} pixels, or null."
            )

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """One sample without a batch axis; raises DataError when the image is smaller than the crop."""
        image = self._crop(self._resize(to_rgb(image, "the image")))
        pixels = np.asarray(image, dtype=np.float32)
        if self.colour == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        sample = (pixels / np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(sample.transpose(2, 0, 1) if self.layout == "NCHW" else sample)

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.resize_short is None:
            return image
        width, height = image.size
        ratio = self.resize_short / min(width, height)
        size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
        check_unpacked(f"the image of {height}x{width}, resized", 3 * size[0] * size[1])
        return image.resize(size, Image.Resampling[self.interpolation.upper()])

    def _crop(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        (width, height), (crop_h, crop_w) = image.size, self.crop
        if width < crop_w or height < crop_h:
            raise DataError(
                f"the image is {height}x{width}, smaller than the {crop_h}x{crop_w} crop; "
                "set resize_short or crop."
            )
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
        return image.crop((left, top, left + crop_w, top + crop_h))

    def to_json(self) -> str:
        """The fields as one JSON object with sorted keys; `from_json` reads it back to an equal object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        """Parse `to_json` text; absent fields keep their defaults. Raises DataError on anything else."""
        data = parse_json(text, "preprocessing", DataError)
        known = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or not set(data) <= known:
            extra = sorted(set(data) - known) if isinstance(data, dict) else type(data).__name__
            raise DataError(
                f"preprocessing: {str(extra)[:80]} not understood; the fields are {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess(
        256, (224, 224), "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=255.0
    ),
    "cifar": Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), scale=255.0),
    "efficientnet-lite": Preprocess(
        256, (224, 224), "bicubic", mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
    ),
    "none": Preprocess(),
}


def resolve(spec: str | Path | Preprocess | None) -> Preprocess | None:
    """A preset name, the path of a .json file, a Preprocess or None; raises DataError naming the presets."""
    if spec is None or isinstance(spec, Preprocess):
        return spec
    if str(spec) in PRESETS:
        return PRESETS[str(spec)]
    path = Path(spec)
    if path.suffix.lower() != ".json":
        raise DataError(
            f"preprocessing {str(spec)[:80]} is unknown; use {', '.join(sorted(PRESETS))} or FILE.json."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the preprocessing file cannot be read ({error}); check the path."
        ) from error
    try:
        return Preprocess.from_json(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
