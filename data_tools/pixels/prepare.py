"""One picture, from the bytes that were found to the bytes that are stored; the same bytes where nothing changes.

Orientation tags, CMYK, ICC profiles, 16 bits, palettes, transparency and animation are resolved, and what cannot be is
refused with a reason. Called by the shard writers, in worker processes.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from data_tools.pixels.colour import is_foreign
from data_tools.pixels.decode import decode
from data_tools.pixels.header import JPEG_FORMATS, BadImage, has_16_bits, open_header, orientation, reason
from data_tools.pixels.resize import ResizeMode, decoding_factor, final_size, resize

Extension = Literal["jpg", "png", "webp"]
PASSES_AS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Pixels:
    """A picture ready to be stored."""

    data: bytes
    width: int
    height: int
    original_width: int
    """Upright, before resizing."""
    original_height: int
    untouched: bool
    """`data` are the very bytes that came in."""


def prepare(data: bytes, mode: ResizeMode, size: int | None, extension: Extension, quality: int = 95) -> Pixels:
    """Decode `data`, resolve everything that is not plain 8-bit sRGB, resize, and encode again if anything changed.

    Args:
        quality: of JPEG (with full colour resolution) and WebP, 1 to 100.

    Raises:
        BadImage: not a picture, cut off, too many pixels, or of a kind that has no meaning in sRGB.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused here, or is no trouble
        image = open_header(data)
        try:
            prepared = _prepare(image, data, mode, size, extension, quality)
            if image.format == "PNG":
                open_header(data).verify()  # the checksums, which the decoder passes over
            return prepared
        except BadImage:
            raise
        except Exception as error:  # broken files make decoders raise errors of every kind: each of them is a refusal
            raise BadImage(reason(error)) from None


def _prepare(
    image: Image.Image, data: bytes, mode: ResizeMode, size: int | None, extension: Extension, quality: int
) -> Pixels:
    found = image.size if orientation(image) < 5 else image.size[::-1]
    if _is_plain(image, data, extension) and final_size(found, mode, size) == found:
        decode(image, data, factor=8)  # whole to the last byte, or refused
        return Pixels(data, *found, *found, untouched=True)
    is_jpeg = image.format in JPEG_FORMATS
    pixels = decode(image, data, decoding_factor(found, mode, size) if is_jpeg else 1)
    if not is_jpeg:
        found = (pixels.shape[1], pixels.shape[0])
    stored = np.ascontiguousarray(resize(pixels, found, mode, size))
    return Pixels(_encode(stored, extension, quality), stored.shape[1], stored.shape[0], *found, untouched=False)


def _is_plain(image: Image.Image, data: bytes, extension: Extension) -> bool:
    """True when the bytes can stay: one upright, opaque 8-bit sRGB picture of the wanted format."""
    return (
        PASSES_AS.get(image.format or "") == extension
        and image.mode == "RGB"
        and not image.has_transparency_data
        and not has_16_bits(image, data)
        and getattr(image, "n_frames", 1) == 1
        and orientation(image) == 1
        and not is_foreign(image.info.get("icc_profile"))
    )


def _encode(pixels: np.ndarray, extension: Extension, quality: int) -> bytes:
    """uint8 [H, W, 3] to a file without tags, for the pixels are upright sRGB now."""
    if extension == "jpg":
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False)
    file = io.BytesIO()
    if extension == "png":
        Image.fromarray(pixels).save(file, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels).save(file, "WEBP", quality=quality)
    return file.getvalue()
