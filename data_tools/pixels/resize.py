"""The resize modes: img2dataset's, and none. Area filter to shrink, Lanczos to enlarge. Called by `prepare`."""

from typing import Literal

import cv2
import numpy as np

ResizeMode = Literal["center_crop", "keep_ratio", "keep_ratio_largest", "border", "none"]
"""center_crop fills a square, border fits into one and pads it with white; keep_ratio makes the shorter side `size`,
keep_ratio_largest the longer one."""

PIXELS_LEFT_FOR_THE_FILTER = 2
"""A JPEG decoder may halve the sides as long as they stay this many times the wanted size: what its own coarse filter
does is then evened out by the exact one (the figure is in docs/data-tools.md)."""

Size = tuple[int, int]
"""(width, height) in pixels."""


def scaled_size(found: Size, mode: ResizeMode, size: int | None) -> Size:
    """The size after scaling, before what is cut off or padded."""
    if mode == "none":
        return found
    assert size is not None
    side = min(found) if mode in ("center_crop", "keep_ratio") else max(found)
    return max(1, round(found[0] * size / side)), max(1, round(found[1] * size / side))


def final_size(found: Size, mode: ResizeMode, size: int | None) -> Size:
    """The size of the stored picture."""
    if mode in ("center_crop", "border"):
        assert size is not None
        return size, size
    return scaled_size(found, mode, size)


def decoding_factor(found: Size, mode: ResizeMode, size: int | None) -> int:
    """By how much a decoder may shrink a picture of the size `found`: 1, 2, 4 or 8."""
    scaled = scaled_size(found, mode, size)
    room = min(found[0] / scaled[0], found[1] / scaled[1]) / PIXELS_LEFT_FOR_THE_FILTER
    return next(factor for factor in (8, 4, 2, 1) if factor <= room or factor == 1)


def resize(pixels: np.ndarray, found: Size, mode: ResizeMode, size: int | None) -> np.ndarray:
    """uint8 [h, w, 3], maybe decoded smaller than `found`, to uint8 [H, W, 3] of the final size."""
    cv2.setNumThreads(1)  # a worker has one core
    if mode == "center_crop":
        pixels = _middle_square(pixels)
        scaled = final_size(found, mode, size)
    else:
        scaled = scaled_size(found, mode, size)
    if (pixels.shape[1], pixels.shape[0]) != scaled:
        shrinks = scaled[0] * scaled[1] < pixels.shape[0] * pixels.shape[1]
        pixels = cv2.resize(pixels, scaled, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)
    return _padded(pixels, size) if mode == "border" and size is not None else pixels


def _middle_square(pixels: np.ndarray) -> np.ndarray:
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def _padded(pixels: np.ndarray, size: int) -> np.ndarray:
    """White around the picture; the odd pixel goes to the right and below."""
    square = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square
