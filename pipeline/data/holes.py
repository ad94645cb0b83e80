"""Random holes for training to inpaint and outpaint: drawn for each sample, the same at any world size.

Called by the diffusion stage of a model with an inpainting condition.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.randomness import Draws, Purpose

WHOLE_SHARE, FRAME_SHARE = 0.1, 0.3
"""Share of samples of which nothing is known (text to image), and of those known inside a frame only (outpainting)."""
SMALLEST, LARGEST = 0.2, 0.8
"""Sides of a rectangle, as shares of the picture's."""
MAX_RECTANGLES = 3


def random_holes(draws: Draws, epochs: Sequence[int], sample_ids: Sequence[int], height: int, width: int) -> np.ndarray:
    """bool [B, 1, height, width], True where the network has to paint."""
    numbers = draws.uniform(Purpose.HOLE, epochs, sample_ids, 2 + 4 * MAX_RECTANGLES)
    return np.stack([_hole(row, height, width) for row in numbers])[:, None]


def _hole(numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    """One hole from its uniform numbers: everything, everything but one rectangle, or one to three rectangles."""
    kind, count, *places = numbers
    hole = np.zeros((height, width), dtype=bool)
    if kind < WHOLE_SHARE:
        return ~hole
    framed = kind < WHOLE_SHARE + FRAME_SHARE
    for i in range(1 if framed else 1 + int(count * MAX_RECTANGLES)):
        hole[_rectangle(places[4 * i : 4 * i + 4], height, width)] = True
    return ~hole if framed else hole


def _rectangle(numbers: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a rectangle that lies inside the picture."""
    slices = []
    for size, place, side in zip(numbers[:2], numbers[2:], (height, width), strict=True):
        length = max(1, round((SMALLEST + (LARGEST - SMALLEST) * size) * side))
        start = int(place * (side - length + 1))
        slices.append(slice(start, start + length))
    return slices[0], slices[1]
