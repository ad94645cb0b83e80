"""Photo-like pictures for the races: crops and warps of the photographs that scikit-image and scikit-learn carry.

Noise would flatter whoever decodes little; upscaled pictures would have no detail. Called by `benchmarks.sharding`.
"""

from pathlib import Path

import cv2
import numpy as np
from skimage import data
from sklearn.datasets import load_sample_images

QUALITY = 90


def write_photos(folder: Path, count: int, side: int) -> list[Path]:
    """`count` JPEGs of `side` x `side` pixels, each with a caption in a .txt of the same name."""
    folder.mkdir(parents=True)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        picture = warped(sources[number % len(sources)], side, rng)
        cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        path.with_suffix(".txt").write_text(f"photograph number {number}, turned and cut")
        paths.append(path)
    return paths


def warped(photo: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [side, side, 3]: turned, scaled by 1 to 1.5, moved, mirrored at the edges, with the grain of a sensor."""
    height, width = photo.shape[:2]
    angle, scale = rng.uniform(-25, 25), rng.uniform(1.0, 1.5)
    matrix = cv2.getRotationMatrix2D((rng.uniform(0, width), rng.uniform(0, height)), angle, scale)
    matrix[:, 2] += side / 2 - np.array([width, height]) / 2
    found = cv2.warpAffine(photo, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    grain = rng.normal(0, 2, (side, side, 1)).astype(np.float32)
    return np.clip(found + grain, 0, 255).astype(np.uint8)
