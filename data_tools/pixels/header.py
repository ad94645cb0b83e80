"""What a picture's header says, before any pixel is decoded; bombs and strangers are refused here.

Called by the other modules of `data_tools.pixels`.
"""

import io
import re

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Tried by content, not by file name. No format that runs another program."""

JPEG_FORMATS = ("JPEG", "MPO")
"""MPO: JPEGs one behind the other, as cameras with two lenses store them; the first counts."""

MAX_PIXELS = 128_000_000
"""Larger pictures are refused by their header, before a decoder allocates anything."""

ORIENTATION_TAG = 0x0112
BITS_PER_SAMPLE_TAG = 258


class BadImage(ValueError):
    """A picture that is refused; the message is the reason, without names or numbers, so that they can be counted."""


def open_header(data: bytes) -> Image.Image:
    """The picture, not decoded yet.

    Raises:
        BadImage: empty, no picture of a known format, a broken header, or more than `MAX_PIXELS`.
    """
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception as error:  # a broken file makes Pillow's plug-ins raise nearly anything
        raise BadImage(reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("too many pixels")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation 1 to 8; 1 where there is none or the tag is broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except (ValueError, OSError, SyntaxError, KeyError, TypeError):
        return 1
    return value if value in range(1, 9) else 1


def has_16_bits(image: Image.Image, data: bytes) -> bool:
    """True for 16 bits in each channel, of which Pillow would drop the lower 8."""
    if image.format == "PNG":
        return data[24] == 16  # the bit depth in the IHDR chunk, which always comes first
    return image.format == "TIFF" and 16 in image.tag_v2.get(BITS_PER_SAMPLE_TAG, ())  # type: ignore[attr-defined]


def reason(error: Exception) -> str:
    """The error in one line without its numbers: "image file is truncated", not "(17 bytes not processed)"."""
    text = re.sub(r"\s*\(.*?\)", "", " ".join(str(error).split()))
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
