"""Captioned pictures of one coloured shape, made on the spot, and an exact reader of what a picture shows.

Every caption reads "a small red circle at the left on a white background". The drawings need no download and the
reader needs no network: it gets size, colour, shape, place and background back from pixels alone, so that the
obedience of a small text-to-image model is measured, not guessed. Called by `tessera-data draw shapes`, by the
demo recipes and by the evaluation of samples.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from pipeline.randomness import Draws, Purpose

PALETTE = {
    "red": (214, 28, 36),
    "green": (30, 160, 60),
    "blue": (30, 80, 225),
    "yellow": (255, 225, 25),
    "purple": (145, 30, 180),
    "orange": (255, 135, 0),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
"""sRGB of each colour word; the two nearest (orange, yellow) are 93 grey levels apart."""

RADII = {"small": (0.135, 0.160), "large": (0.240, 0.270)}
"""Circumradius as a share of the picture's side: a uniform draw between the two."""

CENTERS = {
    "left": (0.295, 0.5),
    "right": (0.705, 0.5),
    "top": (0.5, 0.295),
    "bottom": (0.5, 0.705),
    "center": (0.5, 0.5),
}
"""(x, y) of the shape's centre as shares of the picture's side."""

CENTER_JITTER = 0.02
"""Largest deviation of the centre along each axis, as a share of the picture's side."""

SHAPES = ("circle", "square", "triangle", "star")
SUPERSAMPLING = 2
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class ShapeAttributes:
    """What one picture shows. `colour == background` is the reader's way to say that it found no shape."""

    size: str
    """small or large."""
    colour: str
    """A name of the palette."""
    shape: str
    """circle, square, triangle or star."""
    place: str
    """left, right, top, bottom or center."""
    background: str
    """A name of the palette."""

    @property
    def caption(self) -> str:
        """The one sentence that describes these attributes."""
        return f"a {self.size} {self.colour} {self.shape} at the {self.place} on a {self.background} background"


_BY_CAPTION = {
    attributes.caption: attributes
    for attributes in (ShapeAttributes(*words) for words in product(RADII, PALETTE, SHAPES, CENTERS, PALETTE))
    if attributes.colour != attributes.background
}

SHAPE_CAPTIONS = tuple(_BY_CAPTION)
"""All 2 * 8 * 4 * 5 * 7 = 2240 captions."""


def parse_caption(caption: str) -> ShapeAttributes | None:
    """The attributes that `caption` asks for; None when it is not one of SHAPE_CAPTIONS."""
    return _BY_CAPTION.get(caption)


@cache
def held_out(caption: str) -> bool:
    """True for the tenth of the captions, by keyed hash, that training never sees; all words stay in training."""
    digest = hashlib.blake2b(caption.encode(), digest_size=8, key=b"held-out captions").digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**64


def captions_of(split: str) -> tuple[str, ...]:
    """The captions of a split: "train", "held-out" or "all"."""
    assert split in ("train", "held-out", "all"), split
    if split == "all":
        return SHAPE_CAPTIONS
    return tuple(caption for caption in SHAPE_CAPTIONS if held_out(caption) == (split == "held-out"))


def draw_shape(
    seed: int, sample_id: int, image_size: int = 32, captions: Sequence[str] = SHAPE_CAPTIONS
) -> tuple[np.ndarray, str]:
    """Sample `sample_id` of the endless set of `seed`: uint8 [image_size, image_size, 3] and its caption.

    The caption, the jitter of the centre and the radius are draws keyed on (seed, sample_id): any range of samples can
    be drawn in any order. Pass one caption to get jittered drawings of it.
    """
    choice, x, y, scale = Draws(seed).uniform(Purpose.DRAWING, [0], [sample_id], 4)[0]
    caption = captions[int(choice * len(captions))]
    wanted = _BY_CAPTION[caption]
    smallest, largest = RADII[wanted.size]
    center_x, center_y = CENTERS[wanted.place]
    alpha = coverage(
        wanted.shape,
        image_size,
        center=(center_x + CENTER_JITTER * (2 * x - 1), center_y + CENTER_JITTER * (2 * y - 1)),
        radius=smallest + scale * (largest - smallest),
    )[..., None]  # [H, W, 1]
    front, back = np.array(PALETTE[wanted.colour], float), np.array(PALETTE[wanted.background], float)
    return np.rint(back + alpha * (front - back)).astype(np.uint8), caption


def coverage(shape: str, image_size: int, center: tuple[float, float], radius: float) -> np.ndarray:
    """The share of each pixel that a shape covers, float64 [image_size, image_size] in [0, 1].

    `center` (x, y) and `radius` (of the circumscribed circle) are shares of the picture's side. A shape is a set of
    half-planes: a point of a square or triangle lies in all of them, one of a five-pointed star misses at most one.
    """
    finer = image_size * SUPERSAMPLING
    ticks = (np.arange(finer) + 0.5) / finer
    x, y = ticks[None, :] - center[0], ticks[:, None] - center[1]  # [1, F], [F, 1]
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    else:
        angles, inner, misses = _OUTLINES[shape]
        farthest = second = np.full((finer, finer), -np.inf)  # signed distances to edges, positive outside
        for angle in angles:
            plane = x * math.cos(angle) + y * math.sin(angle) - radius * inner  # [F, F]
            second = np.maximum(second, np.minimum(farthest, plane))
            farthest = np.maximum(farthest, plane)
        outside = second if misses else farthest
    alpha = np.clip(0.5 - outside * finer, 0, 1)  # the edge crosses one fine pixel linearly
    return alpha.reshape(image_size, SUPERSAMPLING, image_size, SUPERSAMPLING).mean(axis=(1, 3))


_OUTLINES: dict[str, tuple[list[float], float, int]] = {
    "square": ([math.pi / 2 * k for k in range(4)], math.sqrt(0.5), 0),
    "triangle": ([math.pi / 2 + math.tau / 3 * k for k in range(3)], 0.5, 0),
    "star": ([math.pi / 2 + math.tau / 5 * k for k in range(5)], math.cos(math.tau / 5), 1),
}
"""Each shape's outward normals (radians, y down), inner radius over circumradius, and the planes a point may miss."""


def read_attributes(image: np.ndarray) -> ShapeAttributes:
    """What `image` (uint8 [H, H, 3]) shows, from its pixels alone; made for slightly blurred or noisy pictures too.

    The background is the palette colour nearest to the median of the border. The rest comes from a matched filter:
    of all templates (shape, radius, softness) at the picture's centre of gravity, the one that explains most of what
    differs from the background; the colour is the amplitude that fits it best, so a blurred small shape keeps its own.
    """
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    back = np.median(border, axis=0)  # [3]
    difference = pixels - back  # [H, H, 3]
    center = _center_of_gravity(np.linalg.norm(difference, axis=2))
    bank = _templates(len(image), *(round(c * STEPS_A_PIXEL) % STEPS_A_PIXEL for c in center))
    middle = [math.floor(round(c * STEPS_A_PIXEL) / STEPS_A_PIXEL) for c in center]
    reach = bank.reach
    padded = np.pad(difference, ((reach, reach), (reach, reach), (0, 0)))  # nothing differs outside the picture
    patch = padded[middle[1] : middle[1] + 2 * reach + 1, middle[0] : middle[0] + 2 * reach + 1].reshape(-1, 3)
    amplitudes = bank.masks @ patch  # [templates, 3], along masks of unit norm
    best = int(np.square(amplitudes).sum(axis=1).argmax())
    shape, radius = bank.labels[best]
    return ShapeAttributes(
        size="large" if radius > (RADII["small"][1] + RADII["large"][0]) / 2 else "small",
        colour=_nearest_colour(back + amplitudes[best] / bank.norms[best]),
        shape=shape,
        place=min(CENTERS, key=lambda place: math.dist(CENTERS[place], [c / len(image) for c in center])),
        background=_nearest_colour(back),
    )


STEPS_A_PIXEL = 4
"""Templates are drawn with their centre on a grid this fine."""

TEMPLATE_RADII = tuple(np.linspace(0.125, 0.28, 10))
TEMPLATE_BLURS = (0.0, 0.02, 0.035, 0.05)
"""Standard deviations of the blur that the templates allow for, as shares of the picture's side."""


@dataclass(frozen=True)
class _Bank:
    """All templates whose centre has one place inside its pixel."""

    masks: np.ndarray
    """float32 [templates, (2 * reach + 1) ** 2], each of unit norm."""
    norms: np.ndarray
    """[templates]: what the masks were divided by."""
    labels: list[tuple[str, float]]
    """Shape and radius of each."""
    reach: int
    """Pixels from the middle pixel to the edge of a mask."""


@cache
def _templates(image_size: int, step_x: int, step_y: int) -> _Bank:
    """The bank for a centre at (step_x, step_y) / STEPS_A_PIXEL inside the middle pixel."""
    reach = math.ceil(image_size * (TEMPLATE_RADII[-1] + TEMPLATE_BLURS[-1]))
    side = 2 * reach + 1
    share = image_size / side
    center = ((reach + step_x / STEPS_A_PIXEL) / side, (reach + step_y / STEPS_A_PIXEL) / side)
    masks, labels = [], []
    for shape, radius in product(SHAPES, TEMPLATE_RADII):
        sharp = coverage(shape, side, center, radius * share)
        for blur in TEMPLATE_BLURS:
            masks.append(_blurred(sharp, blur * image_size).ravel())
            labels.append((shape, radius))
    norms = np.linalg.norm(masks, axis=1)
    return _Bank((np.stack(masks) / norms[:, None]).astype(np.float32), norms, labels, reach)


def _blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a square mask by `sigma` pixels."""
    if sigma == 0:
        return mask
    places = np.arange(len(mask))
    kernel = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return kernel @ mask @ kernel.T


def _nearest_colour(rgb: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: math.dist(PALETTE[name], rgb))


def _center_of_gravity(strength: np.ndarray) -> tuple[float, float]:
    """(x, y) in pixels of what stands out in `strength` [H, H]; each shape's is the centre of its circle.

    Faint pixels, and those farther from the middle of the strong ones than the largest shape reaches, do not count.
    """
    size = len(strength)
    rows, columns = np.nonzero(strength >= 0.5 * strength.max())
    y, x = np.ogrid[:size, :size]
    far = (x - np.median(columns)) ** 2 + (y - np.median(rows)) ** 2 > (1.3 * RADII["large"][1] * size) ** 2
    weights = np.where(far | (strength < 0.2 * strength.max()), 0.0, strength)
    total = max(float(weights.sum()), 1e-9)
    ticks = np.arange(size) + 0.5
    return float(weights.sum(axis=0) @ ticks) / total, float(weights.sum(axis=1) @ ticks) / total
