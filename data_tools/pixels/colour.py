"""Decoded pixels of any mode -> opaque 8-bit sRGB. Called by `data_tools.pixels.decode`."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from data_tools.pixels.header import BadImage

MATTE = (255, 255, 255)
"""What shows through transparent pixels."""

NO_MEANING = ("I", "F", "LAB", "HSV")
"""Modes whose numbers say no colour of sRGB without knowing more."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB, through the ICC profile where there is one, transparent parts on the matte.

    Raises:
        BadImage: pixels without a meaning in sRGB.
    """
    if image.mode in NO_MEANING or image.mode.startswith("I;"):
        raise BadImage(f"pixels of mode {image.mode.partition(';')[0]}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        colours = _through_profile(image.convert("RGB"), profile)
        return Image.composite(colours, Image.new("RGB", image.size, MATTE), image.getchannel("A"))
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _through_profile(image, profile)


def is_foreign(profile: bytes | None) -> bool:
    """True when there is a profile, and it is not that of sRGB itself."""
    return profile is not None and not _is_srgb(profile)


def decode_16_bits(data: bytes) -> Image.Image:
    """A picture of 16 bits a channel, rounded to 8: mode L, RGB or RGBA.

    Raises:
        BadImage: it does not decode.
    """
    import cv2

    wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if wide is None or wide.dtype != np.uint16:
        raise BadImage("16-bit picture that does not decode")
    array = ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if array.ndim == 3:  # OpenCV keeps blue first
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(array))


def _through_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB in sRGB; a profile that is broken or meant for other channels is passed over."""
    if profile is not None and is_foreign(profile):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # None only when converting in place
            return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    """True when the profile calls itself sRGB."""
    try:
        return "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower()
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
