"""Picture samples to training pixels: decode, bring the short side to size, crop, flip, stack.

Every random choice is a `Draws` number keyed on epoch and sample. Called by the reader, from its decoding threads.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from pipeline.data.captions import CaptionChoice
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.samples import Arrays, BadSample, Decoded
from pipeline.data.tar import TarSample, metadata_of
from pipeline.randomness import Draws, Purpose

IMAGE_EXTENSIONS = ("jpg", "png", "webp", "jpeg", "bmp", "gif", "tif", "tiff")


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize so that `height` x `width` is covered and one side fits: area filter to shrink, cubic to grow."""
    rows, columns = image.shape[:2]
    scale = max(height / rows, width / columns)
    if scale == 1.0:
        return image
    target = (max(width, round(columns * scale)), max(height, round(rows * scale)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC)


def crop(image: np.ndarray, height: int, width: int, place: tuple[float, float]) -> np.ndarray:
    """The `height` x `width` window at `place`: two numbers in [0, 1), at which of the free rows and columns."""
    rows, columns = image.shape[0] - height, image.shape[1] - width
    top, left = int(place[0] * (rows + 1)), int(place[1] * (columns + 1))
    return image[top : top + height, left : left + width]


class PictureDecoder:
    """Pictures of the shape that `shape_of` names for their sample: (height, width) in pixels.

    Args:
        draws: the run's random numbers; None cuts the middle and never flips.
    """

    def __init__(
        self,
        shape_of: Callable[[int], tuple[int, int]],
        captions: CaptionChoice,
        draws: Draws | None,
        random_crop: bool,
        random_flip: bool,
    ) -> None:
        cv2.setNumThreads(1)  # decoding has its own threads
        self._shape_of = shape_of
        self._captions = captions
        self._draws = draws
        self._random_crop = random_crop
        self._random_flip = random_flip

    def __call__(self, sample: TarSample, epoch: int, sample_id: int) -> Decoded:
        """The pixels of a sample in an epoch; raises BadSample."""
        data = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
        if data is None:
            raise BadSample(f"{sample.key}: no picture among {', '.join(sorted(sample.members))}")
        shape = self._shape_of(sample_id)
        try:
            image = fit(decode_image(data, max(shape)), *shape)
        except DecodeError as error:
            raise BadSample(f"{sample.key}: {error}") from None
        if image.shape[:2] != shape:
            image = crop(image, *shape, self._crop_place(epoch, sample_id))
        if self._flipped(epoch, sample_id):
            image = image[:, ::-1]
        return Decoded(sample.key, self._captions(sample, epoch, sample_id), image, metadata_of(sample))

    def stack(self, samples: Sequence[Decoded]) -> Arrays:
        """One copy straight into channels-first memory; all of one shape."""
        height, width = samples[0].array.shape[:2] if samples else self._shape_of(0)
        images = np.empty((len(samples), 3, height, width), dtype=np.uint8)
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
