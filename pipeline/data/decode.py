"""Encoded pictures to uint8 RGB, exactly or not at all.

The fastest library that handles a file exactly gets it (libjpeg-turbo for JPEG, OpenCV for PNG), and Pillow the odd
ones: CMYK, EXIF rotation, other formats. Called by the picture decoder of the loader.
"""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

EXIF_WINDOW_BYTES = 1 << 16
MAX_PIXELS = 128_000_000
"""A picture that claims more is refused before a byte of it is decoded."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


class DecodeError(ValueError):
    """The bytes are not a whole picture."""


def decode_image(data: bytes, min_side: int = 0) -> np.ndarray:
    """An encoded picture as uint8 RGB [H, W, 3]: EXIF rotation applied, transparency over white.

    Args:
        min_side: a huge JPEG may be decoded at 1/2, 1/4 or 1/8 while no side gets shorter than this; 0: full size.

    Raises:
        DecodeError: broken, cut off, not a picture, or more than `MAX_PIXELS`.
    """
    head = data[:EXIF_WINDOW_BYTES]
    rotated = b"Exif" in head or b"eXIf" in head
    if head.startswith(_JPEG) and not rotated:
        return _decode_jpeg(data, min_side)
    if head.startswith(_PNG) and not rotated:
        return _decode_png(data)
    return _decode_pillow(data)


def _decode_jpeg(data: bytes, min_side: int) -> np.ndarray:
    """libjpeg-turbo, strict about damage; Pillow gets what it refuses (CMYK, odd but whole files)."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _decode_pillow(data)
    _check_pixels(width, height)
    try:
        if min_side and min(height, width) >= 2 * min_side:
            return simplejpeg.decode_jpeg(data, min_height=min_side, min_width=min_side, min_factor=2)
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return _decode_pillow(data)


def _decode_png(data: bytes) -> np.ndarray:
    """OpenCV; 16 bits are rounded to 8, grey is repeated."""
    _check_pixels(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DecodeError("not a whole PNG")
    image = _to_8_bits(image)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return _over_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_pillow(data: bytes) -> np.ndarray:
    """Everything that Pillow knows; of an animation the first frame."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            _check_pixels(*picture.size)
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                return _over_white(np.asarray(upright.convert("RGBA")))
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray(_to_8_bits(np.asarray(upright)))
            return np.array(upright.convert("RGB"))
    except DecodeError:
        raise
    except Exception as error:  # a broken file makes Pillow's plug-ins raise nearly anything
        raise DecodeError(f"not a whole picture: {error}") from None


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    """uint16 scaled by 255 / 65535 and rounded; uint8 as it is."""
    if image.dtype == np.uint8:
        return image
    return ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _over_white(image: np.ndarray) -> np.ndarray:
    """uint8 RGBA [H, W, 4] over a white ground, rounded: RGB [H, W, 3]."""
    alpha = image[..., 3:].astype(np.uint32)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _check_pixels(width: int, height: int) -> None:
    """Refuse decompression bombs by what the header claims."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
