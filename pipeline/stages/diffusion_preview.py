"""The preview picture of the diffusion stage: what its averaged weights draw."""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.batch import Batch
from pipeline.evaluate.grid import captioned_grid
from pipeline.generate import Generator
from pipeline.models.condition import enlarged, shrunk

NUM_ENLARGED = 4


def preview_sheet(generator: Generator, prompts: Sequence[str], latest: Batch | None) -> np.ndarray:
    """The fixed prompts, prompt i with seed i; or small pictures, what the model makes of them, and the originals.

    Args:
        latest: the batch of the last step: pictures are drawn at its size.

    Returns:
        uint8 [H, W, 3].
    """
    condition = generator.condition
    if condition is None or condition.kind != "upscale":
        size = None if latest is None else _side(latest, generator)
        return captioned_grid(generator.sample(prompts, seeds=range(len(prompts)), image_size=size), prompts)
    assert latest is not None and latest.images is not None, "a preview comes after a step, on pictures"
    images, captions = latest.images[:NUM_ENLARGED], latest.captions[:NUM_ENLARGED]  # [B, 3, H, W]
    small = shrunk(images, condition.factor)
    drawn = generator.sample(captions, range(len(captions)), low_res=small.permute(0, 2, 3, 1).numpy())  # [B, H, W, 3]
    rows = torch.stack([enlarged(small, condition.factor), torch.from_numpy(drawn).permute(0, 3, 1, 2), images], dim=1)
    sheet = rows.flatten(0, 1).permute(0, 2, 3, 1).numpy()  # [3 B, H, W, 3]
    texts = [text for caption in captions for text in ("bicubic", caption, "original")]
    return captioned_grid(sheet, texts, columns=3)


def _side(batch: Batch, generator: Generator) -> int:
    """Side of a batch's pictures in pixels, stored as latents or not."""
    if batch.images is not None:
        return batch.images.shape[-1]
    assert batch.latents is not None, "a batch has pictures or latents"
    return batch.latents.shape[-1] * generator.autoencoder.downsample_factor
