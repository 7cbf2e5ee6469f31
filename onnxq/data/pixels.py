"""From an image of any kind to 8-bit RGB pixels; what has no agreed meaning in 8 bits is refused.

Pillow's own `convert("RGB")` clips 16-bit grey values at 255, so that such an image becomes white. Here
1. 8-bit kinds (grey, palette, RGB, CMYK, YCbCr, with or without alpha) are converted by Pillow; alpha is
   dropped, as elsewhere. Black and white becomes 0 and 255. Of colour with 16 bits Pillow reads the 8 high
   bits.
2. 16-bit grey is scaled: 65535 (4095 where a TIFF says that it has 12 bits) becomes 255.
3. Floats and 32-bit integers have no agreed range, and an animation has several images: both are refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq.data.limits import check_unpacked
from passes.core.errors import DataError

__all__ = ["decode_image", "to_rgb"]

# No others: Pillow runs Ghostscript on what looks like PostScript, whatever the file is called.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM")
_ERRORS = (
    OSError,  # UnidentifiedImageError is one
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
)
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
# Grey formats of 16 bits at most that Pillow holds in 32-bit integers.
_WIDE_GREY = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def decode_image(data: bytes, origin: str) -> NDArray[np.uint8]:
    """HxWx3 pixels of an encoded image.

    Raises:
        DataError: it is not an image, is damaged, too large, or of a kind that is refused.
    """
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Of large images, for which there is a limit below, and of metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=formats) as image:
                return np.asarray(to_rgb(image, origin))
    except _ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{origin}: not a readable image ({reason}); remove or replace the file.") from error


def to_rgb(image: Image.Image, origin: str) -> Image.Image:
    """The image in mode RGB. Raises DataError for a kind that is refused, or Pillow's errors."""
    width, height = image.size
    check_unpacked(origin, 4 * width * height)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's file whose first image is the photograph
        raise DataError(f"{origin}: it has {frames} images in one file; save the one that is meant alone.")
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in _WIDE_GREY):
        return _narrowed(image, origin).convert("RGB")
    if image.mode not in _EIGHT_BITS:
        raise DataError(
            f"{origin}: its pixels are of Pillow's mode {image.mode}, whose range is not agreed upon; "
            "save 8 or 16 bits a channel, or give arrays as .npz."
        )
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns where a palette with alpha loses it in one step
    return image.convert("RGB")


def _narrowed(image: Image.Image, origin: str) -> Image.Image:
    """16-bit grey as 8-bit grey."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if tags.get(_PHOTOMETRIC, 1) == 0:
        raise DataError(f"{origin}: a 16-bit TIFF in which 0 is white is not read; save it with 0 as black.")
    values, top = np.asarray(image).astype(np.float64), 2**bits - 1
    if values.size and (values.min() < 0 or values.max() > top):
        raise DataError(f"{origin}: its grey values are outside 0..{top}; save 8 or 16 bits a channel.")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
