"""Every odd picture file gives the expected pixels or is refused; resizing keeps means; crops stay inside."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import decode
from pipeline.data.captions import CaptionChoice
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.pictures import PictureDecoder, crop, fit
from pipeline.data.samples import BadSample
from pipeline.data.tar import TarSample
from pipeline.randomness import Draws

RGB = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
SMOOTH = cv2.resize(RGB, (96, 72), interpolation=cv2.INTER_CUBIC)


def encoded(array, format="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(RGB, format, **options)), RGB)


def test_jpeg_is_near():
    assert np.abs(decode_image(encoded(SMOOTH, "JPEG", quality=95)).astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {2: np.fliplr, 4: np.flipud, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90}
    turn |= {5: lambda a: a.transpose(1, 0, 2), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2)}
    upright = turn.get(orientation, lambda a: a)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    image = decode_image(encoded(SMOOTH, format, exif=exif, **options))
    assert image.shape == upright(SMOOTH).shape
    assert np.abs(image.astype(int) - upright(SMOOTH)).mean() < 1.5


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(format):
    alpha = np.full((9, 12, 1), 64, dtype=np.uint8)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    image = decode_image(encoded(np.concatenate([RGB, alpha], axis=2), format, **options))
    expected = np.round((RGB.astype(float) * 64 + 255 * 191) / 255)
    assert np.abs(image - expected).max() <= 1


def test_palettes_grey_and_16_bits():
    grey = RGB[..., 0]
    assert np.array_equal(decode_image(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    palette = Image.fromarray(RGB).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(decode_image(buffer.getvalue()), np.asarray(palette.convert("RGB")))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    see_through = decode_image(buffer.getvalue())[np.asarray(palette) == 0]
    assert (see_through == 255).all()
    deep = grey.astype(np.uint16) * 257
    for format in ("PNG", "TIFF"):
        assert np.array_equal(decode_image(encoded(deep, format))[..., 1], grey)


def test_cmyk_jpeg_goes_through_pillow():
    data = encoded(SMOOTH, "JPEG", mode="CMYK", quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(decode_image(data) - expected).mean() < 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_cut_off_files_are_refused(format, share):
    data = encoded(SMOOTH, format)
    with pytest.raises(DecodeError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(DecodeError):
        decode_image(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_give_pixels_or_a_decode_error(format, data):
    broken = bytearray(encoded(RGB, format))
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=8)):
        broken[place] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(broken))
    except DecodeError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF"])
def test_bombs_are_refused_by_their_header(format, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DecodeError, match="12 x 9 pixels are more than 100"):
        decode_image(encoded(RGB, format))


def test_huge_jpegs_are_decoded_small_but_never_too_small():
    data = encoded(cv2.resize(RGB, (640, 480), interpolation=cv2.INTER_CUBIC), "JPEG", quality=95)
    assert decode_image(data).shape == (480, 640, 3)
    assert decode_image(data, min_side=100).shape == (120, 160, 3)
    assert decode_image(data, min_side=241).shape == (480, 640, 3)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_fit_brings_the_short_side_to_size(height, width, size):
    result = fit(np.zeros((height, width, 3), dtype=np.uint8), size, size)
    assert min(result.shape[:2]) == size
    long, short = max(height, width), min(height, width)
    assert abs(max(result.shape[:2]) - long * size / short) <= 0.5


def test_shrinking_is_antialiased():
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(fit(checkerboard, 16, 16).astype(int) - 127.5).max() <= 1
    assert np.abs(fit(checkerboard, 24, 24).astype(int).mean() - 127.5) <= 1


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(0, 9), st.integers(0, 9))
def test_crops_lie_inside_and_reach_both_ends(vertical, horizontal, rows, columns):
    image = np.arange((5 + rows) * (5 + columns)).reshape(5 + rows, 5 + columns)
    assert crop(image, 5, 5, (vertical, horizontal)).shape == (5, 5)
    assert crop(image, 5, 5, (0.0, 0.0))[0, 0] == 0
    assert crop(image, 5, 5, (1 - 2**-53, 1 - 2**-53))[-1, -1] == image[-1, -1]


def decoder_of(draws):
    """Squares of 8 pixels."""
    return PictureDecoder(lambda sample_id: (8, 8), CaptionChoice((), draws), draws, random_crop=True, random_flip=True)


def test_random_choices_are_keyed_on_epoch_and_sample():
    decoder = decoder_of(Draws(0))
    sample = TarSample("a", {"png": encoded(SMOOTH), "json": b'{"caption": "c"}'})
    assert np.array_equal(decoder(sample, 1, 5).array, decoder(sample, 1, 5).array)
    seen = {decoder(sample, epoch, number).array.tobytes() for epoch in range(3) for number in range(5)}
    assert len(seen) >= 4  # of three places, each also mirrored
    plain = decoder_of(None)
    assert len({plain(sample, epoch, 0).array.tobytes() for epoch in range(5)}) == 1
    assert plain(sample, 0, 0).caption == "c"


def test_a_sample_without_a_picture_is_bad():
    with pytest.raises(BadSample, match="no picture among txt"):
        decoder_of(None)(TarSample("a", {"txt": b""}), 0, 0)
