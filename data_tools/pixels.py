"""Pictures as they are found -> 8-bit sRGB, upright, opaque, of the wanted size; or the bytes as they came if they fit.

Orientation tags, CMYK, ICC profiles, 16 bits, palettes, transparency and animation are resolved here, and what cannot
be is refused with a reason. Called by the shard writers, in worker processes.
"""

import io
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Tried by content, not by file name. No format that runs another program."""

MAX_PIXELS = 128_000_000
"""Larger pictures are refused by their header, before a decoder allocates anything."""

JPEG_QUALITY = 95
MATTE = (255, 255, 255)
"""What shows through transparent pixels."""

PIXELS_LEFT_FOR_THE_FILTER = 2
"""A JPEG decoder may halve the sides as long as they stay this many times the wanted size."""

ORIENTATION_TAG = 0x0112
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

ResizeMode = Literal["center_crop", "keep_ratio", "none"]


class BadImage(ValueError):
    """A picture that is refused; the message is the reason, without names or numbers, so that they can be counted."""


@dataclass(frozen=True)
class Pixels:
    """A picture ready to be stored."""

    data: bytes
    extension: Literal["jpg", "png"]
    width: int
    height: int
    original_width: int
    """Upright, before resizing."""
    original_height: int
    untouched: bool
    """`data` are the very bytes that came in."""


def prepare(data: bytes, resize: ResizeMode, size: int | None) -> Pixels:
    """Decode `data`, resolve everything that is not plain 8-bit sRGB, resize, and encode again if anything changed.

    `center_crop` fills size x size, `keep_ratio` makes the shorter side `size`, `none` leaves the size alone. What was
    stored with loss becomes JPEG, what was stored without becomes PNG.

    Raises:
        BadImage: not a picture, cut off, too many pixels, or of a kind that has no meaning in sRGB.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused here, or is no trouble
        return _prepare(data, resize, size)


def _prepare(data: bytes, resize: ResizeMode, size: int | None) -> Pixels:
    image = _open(data)
    extension: Literal["jpg", "png"] = "jpg" if image.format in ("JPEG", "MPO", "WEBP") else "png"
    try:
        plain = _is_plain(image, data)
        upright, original_size = _decode(image, data, size if resize != "none" else None)
        rgb = _to_srgb(upright, image.info.get("icc_profile"))
    except BadImage:
        raise
    except Exception as error:  # broken files make decoders raise errors of every kind: each of them is a refusal
        raise BadImage(_reason(error)) from None
    resized = _resize(rgb, resize, size)
    untouched = plain and resized.size == original_size
    stored = data if untouched else _encode(resized, extension)
    return Pixels(stored, extension, *resized.size, *original_size, untouched)


def _open(data: bytes) -> Image.Image:
    """The header of the picture, checked; no pixel is decoded yet."""
    if not data:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception as error:  # see `prepare`
        raise BadImage(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("too many pixels")
    return image


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """True when the bytes can stay: one upright, opaque 8-bit sRGB picture in a format that every loader decodes."""
    profile = image.info.get("icc_profile")
    return (
        image.format in ("JPEG", "PNG")
        and image.mode == "RGB"
        and not image.has_transparency_data
        and not _has_16_bits(image, data)
        and getattr(image, "n_frames", 1) == 1
        and _orientation(image) == 1
        and (profile is None or _is_srgb(profile))
    )


def _decode(image: Image.Image, data: bytes, size: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame, upright, and its full (width, height); a JPEG may come out smaller, but not below `size`."""
    full_size = image.size
    if size is not None and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (PIXELS_LEFT_FOR_THE_FILTER * size,) * 2)
    if _has_16_bits(image, data):
        pixels = _decode_16_bits(data)
    else:
        image.load()
        pixels = image
    orientation = _orientation(image)  # asked after the load, for Pillow turns TIFF by itself and then drops the tag
    if orientation != 1:
        pixels = pixels.transpose(UPRIGHT[orientation])
    if image.format in ("JPEG", "MPO"):
        return pixels, full_size[::-1] if orientation >= 5 else full_size
    return pixels, pixels.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1 to 8; 1 where there is none or the tag is broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except (ValueError, OSError, SyntaxError, KeyError, TypeError):
        return 1
    return value if value in UPRIGHT else 1


def _has_16_bits(image: Image.Image, data: bytes) -> bool:
    """True for 16 bits in each channel, of which Pillow would drop the lower 8."""
    if image.format == "PNG":
        return data[24] == 16  # the bit depth in the IHDR chunk, which always comes first
    return image.format == "TIFF" and 16 in image.tag_v2.get(258, ())  # type: ignore[attr-defined]


def _decode_16_bits(data: bytes) -> Image.Image:
    """Mode L, RGB or RGBA, rounded to 8 bits."""
    import cv2

    wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if wide is None or wide.dtype != np.uint16:
        raise BadImage("16-bit picture that does not decode")
    array = ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if array.ndim == 3:  # OpenCV keeps blue first
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(array))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB, through the ICC profile where there is one, transparent parts on the matte."""
    if image.mode in ("I", "F") or image.mode.startswith("I;") or image.mode in ("LAB", "HSV"):
        raise BadImage(f"pixels of mode {image.mode.partition(';')[0]}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        colours = _through_profile(image.convert("RGB"), profile)
        return Image.composite(colours, Image.new("RGB", image.size, MATTE), image.getchannel("A"))
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _through_profile(image, profile)


def _through_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB in sRGB; a profile that is broken or meant for other channels is passed over."""
    if profile is not None and not _is_srgb(profile):
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


def _resize(image: Image.Image, resize: ResizeMode, size: int | None) -> Image.Image:
    """Lanczos with support, so that a small picture is filtered and not sampled; the image itself where it fits."""
    if resize == "none":
        return image
    assert size is not None
    shorter = min(image.size)
    if resize == "keep_ratio":
        wanted = (round(image.width * size / shorter), round(image.height * size / shorter))
        box = (0.0, 0.0, float(image.width), float(image.height))
    else:
        left, top = (image.width - shorter) / 2, (image.height - shorter) / 2
        wanted, box = (size, size), (left, top, left + shorter, top + shorter)
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.LANCZOS, box=box)


def _encode(image: Image.Image, extension: Literal["jpg", "png"]) -> bytes:
    """JPEG with full colour resolution, or PNG; no tags, for the pixels are upright sRGB now."""
    file = io.BytesIO()
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # leaves profile, EXIF and text behind
    if extension == "jpg":
        clean.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        clean.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _reason(error: Exception) -> str:
    """The error in one line without its numbers: "image file is truncated", not "(17 bytes not processed)"."""
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\(.*?\)", "", text)
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
