"""Picture samples to training pixels: decode, bring the short side to size, crop, flip, stack.

Every random choice is a `Draws` number keyed on epoch and sample. Called by the reader, from its decoding threads.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.samples import Arrays, BadSample, Decoded
from pipeline.data.tar import TarSample, caption_of, metadata_of
from pipeline.randomness import Draws, Purpose

IMAGE_EXTENSIONS = ("jpg", "png", "webp", "jpeg", "bmp", "gif", "tif", "tiff")


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resize so that the short side is `size`: area filter to shrink, cubic to grow, nothing if it fits already."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short == size:
        return image
    target = (max(size, round(width * size / short)), max(size, round(height * size / short)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA if short > size else cv2.INTER_CUBIC)


def crop(image: np.ndarray, size: int, place: tuple[float, float]) -> np.ndarray:
    """The `size` x `size` window at `place`: two numbers in [0, 1), which of the free rows and columns it begins at."""
    rows, columns = image.shape[0] - size, image.shape[1] - size
    top, left = int(place[0] * (rows + 1)), int(place[1] * (columns + 1))
    return image[top : top + size, left : left + size]


class PictureDecoder:
    """Pictures of `size` x `size` pixels.

    Args:
        draws: the run's random numbers; None cuts the middle and never flips.
    """

    def __init__(self, size: int, draws: Draws | None, random_crop: bool, random_flip: bool) -> None:
        cv2.setNumThreads(1)  # decoding has its own threads
        self._size = size
        self._draws = draws
        self._random_crop = random_crop
        self._random_flip = random_flip

    def __call__(self, sample: TarSample, epoch: int, sample_id: int) -> Decoded:
        """The pixels of a sample in an epoch; raises BadSample."""
        data = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
        if data is None:
            raise BadSample(f"{sample.key}: no picture among {', '.join(sorted(sample.members))}")
        try:
            image = fit(decode_image(data, self._size), self._size)
        except DecodeError as error:
            raise BadSample(f"{sample.key}: {error}") from None
        if image.shape[:2] != (self._size, self._size):
            image = crop(image, self._size, self._crop_place(epoch, sample_id))
        if self._flipped(epoch, sample_id):
            image = image[:, ::-1]
        return Decoded(sample.key, caption_of(sample), image, metadata_of(sample))

    def stack(self, samples: Sequence[Decoded]) -> Arrays:
        """One copy straight into channels-first memory."""
        images = np.empty((len(samples), 3, self._size, self._size), dtype=np.uint8)
        for row, sample in zip(images, samples, strict=True):
            row[...] = sample.array.transpose(2, 0, 1)
        return Arrays(images=torch.from_numpy(images))  # [B, 3, H, W]

    def _crop_place(self, epoch: int, sample_id: int) -> tuple[float, float]:
        """The middle, or a keyed draw."""
        if self._draws is None or not self._random_crop:
            return 0.5, 0.5
        vertical, horizontal = self._draws.uniform(Purpose.CROP, [epoch], [sample_id], 2)[0]
        return float(vertical), float(horizontal)

    def _flipped(self, epoch: int, sample_id: int) -> bool:
        """Heads or tails, keyed."""
        if self._draws is None or not self._random_flip:
            return False
        return bool(self._draws.uniform(Purpose.FLIP, [epoch], [sample_id])[0, 0] < 0.5)
