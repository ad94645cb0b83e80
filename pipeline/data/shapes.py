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

CENTERS = {"left": (0.295, 0.5), "right": (0.705, 0.5), "top": (0.5, 0.295), "bottom": (0.5, 0.705), "center": (0.5, 0.5)}
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
    """True for the tenth of the captions, by keyed hash, that training never sees; every single word stays in training."""
    digest = hashlib.blake2b(caption.encode(), digest_size=8, key=b"held-out captions").digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**64


def captions_of(split: str) -> tuple[str, ...]:
    """The captions of a split: "train", "held-out" or "all"."""
    assert split in ("train", "held-out", "all"), split
    return SHAPE_CAPTIONS if split == "all" else tuple(c for c in SHAPE_CAPTIONS if held_out(c) == (split == "held-out"))


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
        planes = np.stack([x * math.cos(a) + y * math.sin(a) - radius * inner for a in angles])  # [planes, F, F]
        outside = np.sort(planes, axis=0)[-1 - misses]  # signed distance to the edge, positive outside
    alpha = np.clip(0.5 - outside * finer, 0, 1)  # the edge crosses one fine pixel linearly
    return alpha.reshape(image_size, SUPERSAMPLING, image_size, SUPERSAMPLING).mean(axis=(1, 3))


_OUTLINES: dict[str, tuple[list[float], float, int]] = {
    "square": ([math.pi / 2 * k for k in range(4)], math.sqrt(0.5), 0),
    "triangle": ([math.pi / 2 + math.tau / 3 * k for k in range(3)], 0.5, 0),
    "star": ([math.pi / 2 + math.tau / 5 * k for k in range(5)], math.cos(math.tau / 5), 1),
}
"""Each shape's outward normals (radians, y down), inner radius over circumradius, and the planes a point may miss."""

_AREAS = {"circle": math.pi, "square": 2.0, "triangle": 3 * math.sqrt(3) / 4, "star": 1.12257}
"""Area of each shape of circumradius 1."""


def read_attributes(image: np.ndarray) -> ShapeAttributes:
    """What `image` (uint8 [H, H, 3]) shows, from its pixels alone; made for slightly blurred or noisy pictures too.

    Background: the palette colour nearest to the median of the border. Colour: the one nearest to the median of the
    pixels farthest from that background. The shape is the template, rendered at the fitted centre and size, whose soft
    mask overlaps best with the picture's.
    """
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    back = np.median(border, axis=0)  # [3]
    distances = np.linalg.norm(pixels - back, axis=2)  # [H, W]
    front = np.median(pixels[distances >= 0.7 * distances.max()], axis=0)
    direction = (front - back) / max(float(np.square(front - back).sum()), 1.0)
    mask = np.clip((pixels - back) @ direction, 0, 1)  # [H, W], 0 background, 1 shape
    shape, center, radius = _fit(mask)
    return ShapeAttributes(
        size="large" if radius > (RADII["small"][1] + RADII["large"][0]) / 2 else "small",
        colour=_nearest_colour(front),
        shape=shape,
        place=min(CENTERS, key=lambda place: math.dist(CENTERS[place], center)),
        background=_nearest_colour(back),
    )


def _nearest_colour(rgb: np.ndarray) -> str:
    return min(PALETTE, key=lambda name: math.dist(PALETTE[name], rgb))


def _fit(mask: np.ndarray) -> tuple[str, tuple[float, float], float]:
    """The shape, centre and circumradius (shares of the side) whose template overlaps best with a soft mask [H, H]."""
    mask = _without_far_specks(mask)
    size, area = len(mask), max(float(mask.sum()), 1.0)
    ticks = (np.arange(size) + 0.5) / size
    # every shape's centre of gravity is the centre of its circumscribed circle
    center = (float(mask.sum(axis=0) @ ticks) / area, float(mask.sum(axis=1) @ ticks) / area)
    radii = {shape: math.sqrt(area / _AREAS[shape]) / size for shape in SHAPES}
    overlaps = {shape: _overlap(mask, coverage(shape, size, center, radii[shape])) for shape in SHAPES}
    best = max(overlaps, key=overlaps.__getitem__)
    return best, center, radii[best]


def _without_far_specks(mask: np.ndarray) -> np.ndarray:
    """Faint pixels, and all farther from the shape's middle than the largest shape reaches, set to 0."""
    rows, columns = np.nonzero(mask > 0.5)
    if not len(rows):
        return mask
    y, x = np.ogrid[: len(mask), : len(mask)]
    reach = 1.3 * RADII["large"][1] * len(mask)
    near = (x - np.median(columns)) ** 2 + (y - np.median(rows)) ** 2 < reach**2
    return np.where(near & (mask > 0.2), mask, 0.0)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two soft masks."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())
