"""The drawn shapes and their reader: the captions are complete, the drawings keyed, the reader right nearly always."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from pipeline.data.shapes import (
    PALETTE,
    SHAPE_CAPTIONS,
    SHAPES,
    ShapeAttributes,
    captions_of,
    coverage,
    draw_shape,
    held_out,
    parse_caption,
    read_attributes,
)

NUM_DRAWN = 2000


def share_read_right(pictures: list[tuple[np.ndarray, str]]) -> dict[str, float]:
    """The share of pictures read right, for each attribute and for all of them together ("joint")."""
    pairs = [(asdict(read_attributes(image)), vars(parse_caption(caption))) for image, caption in pictures]
    shares = {name: float(np.mean([read[name] == wanted[name] for read, wanted in pairs])) for name in pairs[0][0]}
    return shares | {"joint": float(np.mean([read == wanted for read, wanted in pairs]))}


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of uint8 [H, W, 3], sigma in pixels, the border repeated; float64."""
    reach = int(4 * sigma + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(image.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), mode="valid")
    return padded


def spoiled(image: np.ndarray, sigma: float, noise: float, seed: int) -> np.ndarray:
    """What a blurry decoder makes of a picture: blur of `sigma` pixels, then noise of that standard deviation."""
    soft = blurred(image, sigma)
    return np.clip(np.rint(soft + np.random.default_rng(seed).normal(0, noise, soft.shape)), 0, 255).astype(np.uint8)


def test_there_are_2240_captions_and_each_parses_back() -> None:
    assert len(set(SHAPE_CAPTIONS)) == 2240
    assert all(parse_caption(caption).caption == caption for caption in SHAPE_CAPTIONS)
    assert "a small red circle at the left on a white background" in SHAPE_CAPTIONS


@pytest.mark.parametrize("caption", ["", "a red circle", "a small red circle at the left on a red background"])
def test_other_sentences_do_not_parse(caption: str) -> None:
    assert parse_caption(caption) is None


def test_a_tenth_of_the_captions_is_held_out_and_no_word_with_them() -> None:
    kept, out = captions_of("train"), captions_of("held-out")
    assert len(out) >= 220 and sorted(kept + out) == sorted(captions_of("all"))
    assert all(map(held_out, out)) and not any(map(held_out, kept))
    for name in ShapeAttributes.__dataclass_fields__:
        values, kept_values = ({getattr(parse_caption(c), name) for c in some} for some in (SHAPE_CAPTIONS, kept))
        assert values == kept_values


def test_a_drawing_is_a_function_of_seed_and_sample() -> None:
    first, caption = draw_shape(seed=3, sample_id=11)
    again, caption_again = draw_shape(seed=3, sample_id=11)
    assert caption == caption_again and np.array_equal(first, again)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert len({draw_shape(seed, sample)[0].tobytes() for seed in (0, 1) for sample in range(20)}) == 40


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_agrees_between_resolutions(shape: str) -> None:
    """A fine drawing averaged down is the coarse one: the edges are anti-aliased without bias."""
    coarse = coverage(shape, 32, (0.51, 0.47), 0.25)
    fine = coverage(shape, 256, (0.51, 0.47), 0.25).reshape(32, 8, 32, 8).mean(axis=(1, 3))
    assert np.abs(coarse - fine).max() < 0.1 and abs(coarse.sum() / fine.sum() - 1) < 0.005


def test_a_drawing_of_one_caption_shows_its_two_colours() -> None:
    image, _ = draw_shape(0, 5, 64, ["a large orange square at the center on a blue background"])
    assert tuple(image[0, 0]) == PALETTE["blue"] and tuple(image[32, 32]) == PALETTE["orange"]


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_reader_is_right_on_drawn_pictures(image_size: int) -> None:
    num_drawn = NUM_DRAWN if image_size == 32 else 200
    shares = share_read_right([draw_shape(0, sample, image_size) for sample in range(num_drawn)])
    assert min(shares.values()) >= 0.995, shares


@pytest.mark.parametrize(("sigma", "noise"), [(0.7, 8.0), (1.3, 8.0), (0.7, 20.0)])
def test_the_reader_bears_blur_and_noise(sigma: float, noise: float) -> None:
    drawn = [draw_shape(1, sample) for sample in range(300)]
    shares = share_read_right([(spoiled(image, sigma, noise, n), caption) for n, (image, caption) in enumerate(drawn)])
    assert shares["joint"] >= 0.97, shares


@pytest.mark.parametrize(
    ("mirror", "places"),
    [(np.fliplr, {"left": "right", "right": "left"}), (np.flipud, {"top": "bottom", "bottom": "top"})],
)
def test_a_mirrored_picture_reads_mirrored(mirror: Callable[[np.ndarray], np.ndarray], places: dict[str, str]) -> None:
    for place, mirrored in places.items():
        image, _ = draw_shape(2, 0, 32, [f"a large red circle at the {place} on a white background"])
        assert read_attributes(mirror(image)).place == mirrored


def test_an_empty_picture_shows_no_shape() -> None:
    read = read_attributes(np.full((32, 32, 3), PALETTE["green"], dtype=np.uint8))
    assert read.colour == read.background == "green"
