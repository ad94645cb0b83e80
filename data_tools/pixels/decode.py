"""Encoded bytes -> upright 8-bit sRGB pixels, at full size or, for JPEG, at a half, a quarter or an eighth.

A plain JPEG goes through libjpeg-turbo alone; everything else through Pillow. Called by `data_tools.pixels.prepare`.
"""

import numpy as np
import simplejpeg
from PIL import Image

from data_tools.pixels.colour import decode_16_bits, is_foreign, to_srgb
from data_tools.pixels.header import JPEG_FORMATS, has_16_bits, orientation

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture with each value of the EXIF orientation tag upright; 5 and above exchange the sides."""


def decode(image: Image.Image, data: bytes, factor: int = 1) -> np.ndarray:
    """The first frame: uint8 [H, W, 3], upright sRGB on the matte.

    Args:
        image: the opened header of `data`.
        factor: 1, 2, 4 or 8; a JPEG may come out that many times smaller.

    Raises:
        BadImage: pixels without a meaning in sRGB.
        Exception: whatever the decoder raises of a broken file.
    """
    if image.format in JPEG_FORMATS and image.mode in ("RGB", "L") and not is_foreign(image.info.get("icc_profile")):
        pixels = _decode_jpeg(data, image.size, factor)
        if pixels is not None:
            return pixels if orientation(image) == 1 else _turned(pixels, orientation(image))
    return _decode_with_pillow(image, data, factor)


def _decode_jpeg(data: bytes, size: tuple[int, int], factor: int) -> np.ndarray | None:
    """By libjpeg-turbo; None for what it refuses, which may be an odd file or a broken one."""
    height, width = -(-size[1] // factor), -(-size[0] // factor)
    try:
        if factor == 1:
            return simplejpeg.decode_jpeg(data)
        return simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None


def _decode_with_pillow(image: Image.Image, data: bytes, factor: int) -> np.ndarray:
    if factor > 1 and image.format in JPEG_FORMATS:
        image.draft(image.mode, (image.width // factor, image.height // factor))
    if has_16_bits(image, data):
        pixels = decode_16_bits(data)
    else:
        image.load()
        pixels = image
    profile = image.info.get("icc_profile")
    turn = orientation(image)  # asked after the load, for Pillow turns TIFF by itself and then drops the tag
    if turn != 1:
        pixels = pixels.transpose(UPRIGHT[turn])
    return np.asarray(to_srgb(pixels, profile))


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).transpose(UPRIGHT[turn]))
