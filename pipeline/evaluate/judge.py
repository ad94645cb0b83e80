"""All that is measured of an autoencoder's reconstructions in one pass, with the stamp that belongs to it.

PSNR, SSIM and the use of the codebook always; LPIPS and rFID where their weights are given as local files. Called by
the evaluation command, on every rank with its share of the pictures.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.transforms import to_model, to_uint8
from pipeline.distributed.process import all_reduce_sum
from pipeline.evaluate.frechet import FrechetMeter
from pipeline.evaluate.grid import one_above_another
from pipeline.evaluate.inception import NUM_FEATURES, InceptionFeatures
from pipeline.evaluate.protocol import LPIPS, RECONSTRUCTION, RFID
from pipeline.evaluate.reconstruction import CodebookMeter, PictureMeter
from pipeline.losses.perceptual import PerceptualDistance
from pipeline.storage import sha256_of

NUM_SHOWN = 8
"""Pictures on the sheet."""


class ReconstructionJudge:
    """Meters of one pass.

    Args:
        num_codes: K of the codebook, 0 where there is none.
        lpips_file: weights of torchvision's VGG16; None leaves LPIPS out.
        inception_file: Inception's weights of 2015; None leaves rFID out.

    Raises:
        UserError: a file that is missing or holds another network.
    """

    def __init__(
        self,
        num_codes: int,
        device: torch.device,
        lpips_file: Path | None = None,
        inception_file: Path | None = None,
    ) -> None:
        self.files = {"lpips": lpips_file, "rfid": inception_file}
        self.pictures, self.codebook = PictureMeter(device), CodebookMeter(num_codes, device)
        self.distance = PerceptualDistance(lpips_file).to(device) if lpips_file else None
        self.distances = torch.zeros(2, dtype=torch.float64, device=device)  # LPIPS, pictures
        self.features = InceptionFeatures(inception_file).to(device) if inception_file else None
        self.frechet = FrechetMeter(NUM_FEATURES, device, "rfid") if inception_file else None
        self.shown: list[tuple[Tensor, Tensor]] = []

    def update(self, restored: Tensor, images: Tensor, codes: Tensor) -> None:
        """Add reconstructions (float [B, 3, H, W] near [-1, 1]), pictures (uint8 [B, 3, H, W]) and their codes."""
        if not len(images):
            return
        rounded = to_uint8(restored)
        self.pictures.update(rounded, images)
        self.codebook.update(codes)
        if self.distance:
            self.distances[0] += self.distance(to_model(rounded), to_model(images)).double().sum()
            self.distances[1] += len(images)
        if self.features and self.frechet:
            self.frechet.update(self.features(rounded), self.features(images))
        if sum(len(pair[0]) for pair in self.shown) < NUM_SHOWN:
            self.shown.append((images.cpu(), rounded.cpu()))

    def compute(self) -> dict[str, float]:
        """The figures by name; collective."""
        values = self.pictures.compute() | self.codebook.compute()
        if self.distance:
            total, count = all_reduce_sum(self.distances.clone()).tolist()
            values["lpips"] = total / count
        return values | (self.frechet.compute() if self.frechet else {})

    def protocol(self) -> dict[str, str]:
        """How the figures were measured, with the hashes of the weights that measured them."""
        said = dict(RECONSTRUCTION)
        for name, text in (("lpips", LPIPS), ("rfid", RFID)):
            if file := self.files[name]:
                said |= {name: text, f"{name}_weights": sha256_of(file)}
        return said

    def sheet(self) -> np.ndarray:
        """The first pictures of this rank above their reconstructions, uint8 [2 H, n W, 3]."""
        assert self.shown, "a sheet shows what was measured"
        images, restored = (torch.cat(part)[:NUM_SHOWN] for part in zip(*self.shown, strict=True))
        return one_above_another(images, restored)
