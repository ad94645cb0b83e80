"""Frechet distance of drawn pictures from those of the data (Heusel et al., 2017), by Inception from a local file.

Called by `pipeline.stages.diffusion_evaluation`.
"""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluate.frechet import FrechetMeter
from pipeline.evaluate.inception import NUM_FEATURES, InceptionFeatures
from pipeline.storage import sha256_of


class FidMeter:
    """The distance between two sets of pictures; the batches and ranks do not matter.

    Args:
        file: Inception's weights of 2015.

    Raises:
        UserError: the file is missing or holds another network.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file, self.device = file, device
        self.features = InceptionFeatures(file).to(device)
        self.frechet = FrechetMeter(NUM_FEATURES, device, "fid")

    def update(self, drawn: Tensor, images: Tensor) -> None:
        """Add drawn pictures and pictures of the data, uint8 [B, 3, H, W] each."""
        self.frechet.update(self.features(drawn.to(self.device)), self.features(images.to(self.device)))

    def compute(self) -> dict[str, float]:
        """`fid`; collective. Of fewer than two pictures there is none."""
        return self.frechet.compute()

    def protocol(self) -> dict[str, str]:
        """How it was measured."""
        said = "drawn pictures against as many of the data; 8 bit, Inception of 2015 at 299 pixels, unbiased covariance"
        return {"fid": said, "fid_weights": sha256_of(self.file)}
