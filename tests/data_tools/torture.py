"""The torture corpus: one small file for each odd kind of picture, and what has to come of it.

`corpus()` makes them all from one photo-like picture; the tests hold ours against the wanted pixels, and
`benchmarks/torture.py` holds img2dataset against them.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 48, 32
EXACT, JPEG_PSNR = float("inf"), 30.0
STORED_AS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How a camera stores an upright picture for each orientation tag (EXIF 2.3, tag 274)."""


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    data: bytes
    wanted: np.ndarray | None
    """uint8 [H, W, 3] as a person sees it; None: it has to be refused."""
    psnr: float = EXACT
    """dB that the result has to reach; infinite: every pixel equal."""
    reason: str = ""
    """Of the refusal: a part of it."""


def photo(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 [H, W, 3]: smooth, asymmetric, every channel different."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    return np.stack([255 * x, 255 * y, 255 * (1 - x) * (0.5 + y / 2)], axis=2).round().astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """The bytes of a picture in a format."""
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def over_white(rgba: np.ndarray) -> np.ndarray:
    """What transparency shows."""
    alpha = rgba[..., 3:].astype(float) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def corpus() -> Iterator[Case]:
    """Every case."""
    yield from _orientations()
    yield from _colours()
    yield from _depths()
    yield from _transparency()
    yield from _frames()
    yield from _formats()
    yield from _broken()


def _orientations() -> Iterator[Case]:
    exif = Image.Exif()
    for number, store in STORED_AS.items():
        exif[0x0112] = number
        yield Case(f"orientation-{number}.jpg", encoded(store(photo()), "JPEG", quality=95, exif=exif), photo(), 30)
        yield Case(f"orientation-{number}.png", encoded(store(photo()), "PNG", exif=exif), photo())
    exif[0x0112] = 6
    yield Case("orientation-6.webp", encoded(STORED_AS[6](photo()), "WEBP", lossless=True, exif=exif), photo())
    yield Case("orientation-6.tif", encoded(STORED_AS[6](photo()), "TIFF", exif=exif), photo())
    exif[0x0112] = 99
    yield Case("orientation-99.jpg", encoded(photo(), "JPEG", quality=95, exif=exif), photo(), 30)


def _colours() -> Iterator[Case]:
    ink = Image.fromarray(photo()).convert("CMYK")
    yield Case("cmyk.jpg", encoded(ink, "JPEG", quality=95), photo(), 30)
    yield Case("cmyk.tif", encoded(ink, "TIFF"), photo(), 40)
    grey = np.asarray(Image.fromarray(photo()).convert("L"))
    spread = np.repeat(grey[..., None], 3, axis=2)
    yield Case("grey.jpg", encoded(grey, "JPEG", quality=95), spread, 35)
    yield Case("grey.png", encoded(grey, "PNG"), spread)
    exchanged = photo()[..., [1, 0, 2]]
    yield Case("icc-exchanged.png", encoded(photo(), "PNG", icc_profile=foreign_profile()), exchanged, 45)
    yield Case("icc-exchanged.jpg", encoded(photo(), "JPEG", quality=95, icc_profile=foreign_profile()), exchanged, 30)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case("icc-srgb.png", encoded(photo(), "PNG", icc_profile=srgb), photo())
    yield Case("icc-broken.png", encoded(photo(), "PNG", icc_profile=b"no profile"), photo())


def foreign_profile() -> bytes:
    """An sRGB profile whose red and green primaries are exchanged, under another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "else".encode("utf-16-be"))


def _depths() -> Iterator[Case]:
    wide = (photo().astype(np.uint32) * 257 + 64).clip(0, 65535).astype(np.uint16)
    rounded = np.rint(wide.astype(float) * 255 / 65535).astype(np.uint8)
    blue_first = np.ascontiguousarray(wide[..., ::-1])
    yield Case("rgb-16.png", cv2.imencode(".png", blue_first)[1].tobytes(), rounded)
    yield Case("rgb-16.tif", cv2.imencode(".tiff", blue_first)[1].tobytes(), rounded)
    grey = np.repeat(rounded[..., :1], 3, axis=2)
    yield Case("grey-16.png", cv2.imencode(".png", wide[..., 0])[1].tobytes(), grey)
    clear = np.dstack([blue_first, np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)])
    alpha = np.rint(clear[..., 3:].astype(float) * 255 / 65535).astype(np.uint8)
    shown = over_white(np.dstack([rounded, alpha]))
    yield Case("rgba-16.png", cv2.imencode(".png", clear)[1].tobytes(), shown, 45)
    bits = Image.fromarray(photo()[..., 0] > 128)
    yield Case("one-bit.png", encoded(bits, "PNG"), np.asarray(bits.convert("RGB")))
    floats = Image.fromarray(photo()[..., 0].astype(np.float32))
    yield Case("float.tif", encoded(floats, "TIFF"), None, reason="pixels of mode F")


def _transparency() -> Iterator[Case]:
    ramp = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(np.uint8)
    rgba = np.dstack([photo(), ramp])
    yield Case("rgba.png", encoded(rgba, "PNG"), over_white(rgba), 45)
    yield Case("rgba.webp", encoded(rgba, "WEBP", lossless=True, exact=True), over_white(rgba), 45)
    grey = np.dstack([photo()[..., 0], ramp])
    spread = np.dstack([np.repeat(grey[..., :1], 3, axis=2), ramp])
    yield Case("grey-alpha.png", encoded(Image.fromarray(grey, "LA"), "PNG"), over_white(spread), 45)
    palette = Image.fromarray(photo()).quantize(32)
    yield Case("palette.png", encoded(palette, "PNG"), np.asarray(palette.convert("RGB")))
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == 3] = 255
    yield Case("palette-transparent.png", encoded(palette, "PNG", transparency=3), shown)
    yield Case("palette-transparent.gif", encoded(palette, "GIF", transparency=3), shown)


def _frames() -> Iterator[Case]:
    first, second = Image.fromarray(photo()), Image.fromarray(255 - photo())
    flat = first.quantize(64)
    yield Case("animated.gif", encoded(flat, "GIF", save_all=True, append_images=[second.quantize(64)]),
               np.asarray(flat.convert("RGB")), 35)  # fmt: skip
    yield Case("animated.png", encoded(first, "PNG", save_all=True, append_images=[second]), photo())
    yield Case("animated.webp", encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True), photo())
    yield Case("pages.tif", encoded(first, "TIFF", save_all=True, append_images=[second]), photo())
    pair = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    yield Case("two-lenses.jpg", pair, photo(), 30)


def _formats() -> Iterator[Case]:
    kinds = {"progressive": {"progressive": True}, "4-2-0": {"subsampling": 2}, "rgb": {"keep_rgb": True}}
    for name, options in kinds.items():
        yield Case(f"{name}.jpg", encoded(photo(), "JPEG", quality=95, **options), photo(), 30)
    yield Case("interlaced.png", _interlaced(), photo())
    yield Case("plain.bmp", encoded(photo(), "BMP"), photo())
    yield Case("plain.webp", encoded(photo(), "WEBP", quality=95), photo(), 28)
    yield Case("png-named.jpg", encoded(photo(), "PNG"), photo())
    yield Case("jpeg-named.png", encoded(photo(), "JPEG", quality=95), photo(), 30)
    yield Case("one-pixel.png", encoded(photo()[:1, :1], "PNG"), photo()[:1, :1])
    yield Case("long.png", encoded(np.tile(photo(), (1, 100, 1)), "PNG"), np.tile(photo(), (1, 100, 1)))
    yield Case("trailing-bytes.jpg", encoded(photo(), "JPEG", quality=95) + b"\0" * 100, photo(), 30)


def _interlaced() -> bytes:
    """A PNG with Adam7, which neither Pillow nor OpenCV writes: seven passes, each a small picture."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, across in passes for row in photo()[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _broken() -> Iterator[Case]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind, ending in {
        "JPEG": "jpg",
        "PNG": "png",
        "GIF": "gif",
        "WEBP": "webp",
        "BMP": "bmp",
        "TIFF": "tif",
    }.items():
        data = encoded(noise, kind)
        yield Case(f"truncated.{ending}", data[: len(data) * 2 // 3], None)
    yield Case("truncated-progressive.jpg", encoded(noise, "JPEG", progressive=True)[:2000], None)
    good = bytearray(encoded(noise, "PNG"))
    good[200] ^= 0xFF
    yield Case("wrong-checksum.png", bytes(good), None)
    yield Case("empty.jpg", b"", None, reason="empty file")
    yield Case("page.jpg", b"<!doctype html><html><body>404</body></html>", None, reason="not a picture")
    yield Case(
        "vector.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', None, reason="not a pic"
    )
    yield Case(
        "script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None, reason="not a picture"
    )
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))
    yield Case("bomb.png", bomb + _chunk(b"IEND", b""), None, reason="too many pixels")
    jpeg = bytearray(encoded(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    yield Case("bomb.jpg", bytes(jpeg), None, reason="too many pixels")
