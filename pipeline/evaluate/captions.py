"""How often pictures show what their captions ask for, by attribute; for drawn shapes only, where it is exact.

The pictures are read by `pipeline.data.shapes.read_attributes`, which needs no network, so the figure means obedience
and nothing else. Called by the evaluation command; the registry's gates look at the figure.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from pipeline.data.shapes import ShapeAttributes, parse_caption, read_attributes
from pipeline.distributed.process import all_reduce_sum

CAPTIONS = {
    "name": "captions-1",
    "pictures": "one for each caption, its seed the number of the sample",
    "caption_accuracy": "share of attributes read back as asked, mean over attributes and pictures",
    "caption_accuracy_all": "share of pictures with every attribute right",
    "average": "every sample once, no padding; captions that describe no shape are left out",
}
"""How `CaptionMeter` measures."""

ATTRIBUTES = tuple(field.name for field in fields(ShapeAttributes))


class CaptionMeter:
    """Counts right attributes over a set; its figure is that of one process, whatever the ranks and batch sizes."""

    def __init__(self) -> None:
        self.right = torch.zeros(len(ATTRIBUTES), dtype=torch.int64)
        self.all_right = torch.zeros((), dtype=torch.int64)
        self.count = torch.zeros((), dtype=torch.int64)

    @staticmethod
    def reads(captions: Sequence[str]) -> bool:
        """Whether any of the captions describes a drawn shape, so that pictures are worth drawing."""
        return any(parse_caption(caption) is not None for caption in captions)

    def update(self, images: np.ndarray, captions: Sequence[str]) -> None:
        """Add pictures, uint8 [B, H, H, 3], and what they should show; captions of other things are passed over."""
        for image, caption in zip(images, captions, strict=True):
            wanted = parse_caption(caption)
            if wanted is not None:
                shown = read_attributes(image)
                right = torch.tensor([getattr(shown, name) == getattr(wanted, name) for name in ATTRIBUTES])
                self.right += right
                self.all_right += right.all()
                self.count += 1

    def compute(self) -> dict[str, float]:
        """`caption_accuracy`, `caption_accuracy_all` and one figure for each attribute; empty when nothing was read.

        Collective.
        """
        *right, all_right, count = all_reduce_sum(torch.stack([*self.right, self.all_right, self.count])).tolist()
        if count == 0:
            return {}
        shares = {name: number / count for name, number in zip(ATTRIBUTES, right, strict=True)}
        return {
            "caption_accuracy": sum(shares.values()) / len(ATTRIBUTES),
            "caption_accuracy_all": all_right / count,
            **{f"caption_accuracy_{name}": share for name, share in shares.items()},
        }
