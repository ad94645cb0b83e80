"""Every odd kind of picture file comes out as upright 8-bit sRGB, untouched, or refused with a reason."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data_tools.pixels.header import ORIENTATION_TAG, BadImage
from data_tools.pixels.prepare import Extension, Pixels
from data_tools.pixels.prepare import prepare as prepare_as
from data_tools.pixels.resize import ResizeMode

WIDTH, HEIGHT = 12, 8
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
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


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def prepare(data: bytes, mode: ResizeMode, size: int | None) -> Pixels:
    """JPEG stays JPEG, everything else becomes PNG, so that pixels can be compared."""
    extension: Extension = "jpg" if data.startswith(b"\xff\xd8") else "png"
    return prepare_as(data, mode, size, extension)


def decoded(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB" and not image.getexif() and "icc_profile" not in image.info
    return np.asarray(image)


def shown(data: bytes) -> np.ndarray:
    """The pixels that `prepare` makes of a file without resizing."""
    return decoded(prepare(data, "none", None).data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_plain_pictures_stay_byte_for_byte(kind: str) -> None:
    data = encoded(PICTURE, kind)
    found = prepare(data, "none", None)
    assert found.untouched and found.data == data
    assert (found.width, found.height, found.original_width, found.original_height) == (WIDTH, HEIGHT) * 2
    square = encoded(PICTURE[:8, :8], kind)
    assert prepare(square, "center_crop", 8).data == square


@pytest.mark.parametrize("orientation", STORED_AS)
def test_orientation_is_applied_and_dropped(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    found = prepare(encoded(STORED_AS[orientation](PICTURE), exif=exif), "none", None)
    assert (found.original_width, found.original_height) == (WIDTH, HEIGHT)
    assert found.untouched == (orientation == 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.data))), PICTURE)


def test_orientation_of_a_jpeg_that_the_decoder_shrinks() -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    upright = np.zeros((400, 200, 3), np.uint8)
    upright[:200] = 255  # white above, black below
    found = prepare(encoded(STORED_AS[6](upright), "JPEG", exif=exif), "keep_ratio", 20)
    assert (found.width, found.height, found.original_width, found.original_height) == (20, 40, 200, 400)
    small = decoded(found.data)
    assert small[:15].min() > 240 and small[-15:].max() < 15


def test_cmyk_jpeg() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(shown(encoded(ink, "JPEG")).astype(int) - [255, 0, 0]).max() < 8


def foreign_profile() -> bytes:
    """An sRGB profile whose red and green primaries are exchanged, under another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "else".encode("utf-16-be"))


def test_icc_profile_is_applied_and_dropped() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert np.abs(shown(encoded(red, icc_profile=foreign_profile())).astype(int) - [0, 255, 0]).max() <= 2


@pytest.mark.parametrize("profile", [b"no profile at all", foreign_profile()[:200]])
def test_a_broken_profile_is_passed_over(profile: bytes) -> None:
    assert np.array_equal(shown(encoded(PICTURE, icc_profile=profile)), PICTURE)


def test_an_srgb_profile_changes_nothing() -> None:
    data = encoded(PICTURE, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert prepare(data, "none", None).data == data


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_rounded(channels: int) -> None:
    wide = RNG.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    wide[..., 3:] = 65535  # opaque
    _, data = cv2.imencode(".png", wide)  # OpenCV takes blue first
    wanted = np.rint(wide[..., :3].astype(float) * 255 / 65535)
    wanted = wanted[..., ::-1] if channels > 1 else np.repeat(wanted, 3, axis=2)
    assert np.array_equal(shown(data.tobytes()), wanted)


def test_grey_palette_and_one_bit_become_rgb() -> None:
    grey = PICTURE[..., 0]
    assert np.array_equal(shown(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray(grey > 128)
    assert np.array_equal(shown(encoded(bits)), np.asarray(bits.convert("RGB")))
    palette = Image.fromarray(PICTURE).quantize(16)
    assert np.array_equal(shown(encoded(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new(mode, (3, 1), "black")
    image.putalpha(Image.frombytes("L", (3, 1), bytes([255, 128, 0])))
    assert np.abs(shown(encoded(image))[0, :, 0].astype(int) - [0, 127, 255]).max() <= 1


def test_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.putdata([0, 1])
    assert shown(encoded(image, transparency=1)).tolist() == [[[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 255, 255)), Image.new("RGB", (4, 4), (0, 0, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert shown(data).min() == 255 and not prepare(data, "none", None).untouched


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_cut_off_file_is_refused(kind: str) -> None:
    data = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    with pytest.raises(BadImage):
        prepare(data[: len(data) * 2 // 3], "none", None)


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="too many pixels"):
        prepare(data, "none", None)


@pytest.mark.parametrize("data", [b"", b"<!doctype html><html>404</html>", bytes(1000)])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="empty file|not a picture"):
        prepare(data, "none", None)


def test_reasons_carry_no_numbers() -> None:
    """So that a thousand cut-off files are one line of the summary."""
    data = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    reasons = set()
    for length in (len(data) // 2, len(data) // 2 + 7):
        with pytest.raises(BadImage) as refused:
            prepare(data[:length], "none", None)
        reasons.add(str(refused.value))
    assert len(reasons) == 1


def test_center_crop_takes_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    found = prepare(encoded(wide), "center_crop", 10)
    assert (found.width, found.height, found.original_width) == (10, 10, 30)
    assert decoded(found.data).min() == 255


@pytest.mark.parametrize(("shape", "size"), [((100, 60), (20, 33)), ((60, 100), (33, 20))])
def test_keep_ratio_fits_the_shorter_side(shape: tuple[int, int], size: tuple[int, int]) -> None:
    found = prepare(encoded(np.zeros((*shape, 3), np.uint8)), "keep_ratio", 20)
    assert (found.width, found.height) == size


def test_a_shrunk_jpeg_is_close_to_exact_area_means() -> None:
    """The decoder's own halving and the filter together lose little against averaging all pixels in floating point."""
    y, x = np.mgrid[:512, :512] / 512
    smooth = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(5 * x * y)], axis=2) * 100 + 128
    found = decoded(prepare(encoded(smooth.astype(np.uint8), "JPEG", quality=95), "center_crop", 64).data)
    exact = smooth.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert 10 * np.log10(255**2 / np.square(found - exact).mean()) > 38  # PSNR in dB


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]))
def test_damage_anywhere_is_survived(seed: int, kind: str) -> None:
    """Whatever byte is wrong, the picture is either prepared or refused."""
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(PICTURE, kind))
    for place in rng.integers(0, len(data), 4):
        data[place] = rng.integers(0, 256)
    try:
        prepare(bytes(data), "center_crop", 8)
    except BadImage as error:
        assert str(error)
