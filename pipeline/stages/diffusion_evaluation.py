"""Figures of an exported latent UNet on held-out data: its loss, and what its pictures are worth. Called by `tessera
evaluate`.

Every model has a validation loss, so that a gate can judge it whatever its data shows. Pictures are judged where that
can be done exactly (drawn shapes by their captions, enlarged pictures by the originals), and by networks whose weights
the caller names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.evaluate.captions import CAPTIONS, CaptionMeter
from pipeline.evaluate.clip_score import ClipScoreMeter
from pipeline.evaluate.denoising import DENOISING, DenoisingMeter
from pipeline.evaluate.fid import FidMeter
from pipeline.evaluate.protocol import RECONSTRUCTION
from pipeline.evaluate.reconstruction import PictureMeter
from pipeline.generate import Generator
from pipeline.models.condition import enlarged, shrunk
from pipeline.randomness import Draws
from pipeline.stages.diffusion_inputs import Inputs, validation_losses

ENLARGEMENT = {
    "name": "enlargement-1",
    "small": "bicubic with antialiasing, rounded to 8 bit; enlarged again by bicubic interpolation as the baseline",
    "psnr, ssim": "against the original picture, as in reconstruction-2",
}
"""How a model that enlarges is measured."""
DRAWN = {
    "drawn": "one picture for each caption, its seed the number of the sample; the null prompt as negative; float32",
    "pixels": "8 bit, judged as they are drawn, through no codec",
    "crop": RECONSTRUCTION["crop"],
}
"""How pictures are made that networks judge."""


@dataclass
class UNetMeter:
    """The meters of one model; `compute` is collective.

    Raises:
        UserError: weights that cannot be loaded.
    """

    generator: Generator
    """The model."""
    image_size: int | None = None
    """Side of the pictures that are drawn; None is the model's own."""
    clip: tuple[str, str] | None = None
    """open_clip name and weights that judge pictures by their captions."""
    inception_file: Path | None = None
    """Weights that judge pictures by those of the data."""
    denoising: DenoisingMeter = field(default_factory=DenoisingMeter)
    captions: CaptionMeter = field(default_factory=CaptionMeter)

    def __post_init__(self) -> None:
        generator = self.generator
        device = generator.device
        self.enlarged, self.bicubic = PictureMeter(device), PictureMeter(device)
        self.score = ClipScoreMeter(*self.clip, device) if self.clip else None
        self.fid = FidMeter(self.inception_file, device) if self.inception_file else None
        self.inputs = Inputs(generator.text, generator.autoencoder, generator.condition, Draws(0))

    @property
    def _judges(self) -> list[ClipScoreMeter | FidMeter]:
        return [judge for judge in (self.score, self.fid) if judge is not None]

    @property
    def enlarges(self) -> bool:
        """Whether the model needs a picture to enlarge, and is judged by the original."""
        condition = self.generator.condition
        return condition is not None and condition.kind == "upscale"

    def measure(self, batches: Iterable[Batch]) -> None:
        """Add every sample; the picture of a caption has the sample's number as its seed.

        Raises:
            UserError: data that holds latents, and a model or a meter that needs pictures.
        """
        for batch in batches:
            if not batch.sample_ids:
                continue
            losses = validation_losses(batch, self.inputs, self.generator.objective, self._predict)  # [B]
            self.denoising.update(losses, batch.sample_ids)
            if self.enlarges:
                drawn = self._enlarge(batch)
            elif self.score or self.fid or CaptionMeter.reads(batch.captions):
                pictures = self.generator.sample(batch.captions, batch.sample_ids, image_size=self.image_size)
                self.captions.update(pictures, batch.captions)
                drawn = _channels_first(pictures)
            else:
                continue
            if self.score:
                self.score.update(drawn, batch.captions)
            if self.fid:
                if batch.images is None:
                    raise UserError("--data: holds latents; --fid measures a distance from pictures")
                self.fid.update(drawn, batch.images)

    def compute(self) -> dict[str, float]:
        """All figures by name."""
        figures = {**self.denoising.compute(), **self.captions.compute()}
        for judge in self._judges:
            figures |= judge.compute()
        if self.enlarges:
            figures |= self.enlarged.compute()
            figures |= {f"{name}_bicubic": value for name, value in self.bicubic.compute().items()}
        return figures

    def protocol(self) -> dict[str, Any]:
        """How the figures were measured, but for the data."""
        parts = [DENOISING, ENLARGEMENT if self.enlarges else CAPTIONS]
        merged: dict[str, Any] = {name: value for part in parts for name, value in part.items()}
        for judge in self._judges:
            merged |= DRAWN | judge.protocol()
        sampling = self.generator.sampling.model_dump(mode="json")
        return {**merged, "name": " and ".join(part["name"] for part in parts), "sampling": sampling}

    def _enlarge(self, batch: Batch) -> Tensor:
        """Shrink the batch's pictures, draw them large again, compare: what was drawn, uint8 [B, 3, H, W]."""
        condition = self.generator.condition
        assert condition is not None and condition.kind == "upscale"
        if batch.images is None:
            raise UserError("--data: holds latents; a model that enlarges is judged on pictures")
        images = batch.images.to(self.generator.device)  # [B, 3, H, W]
        small = shrunk(images, condition.factor)  # [B, 3, H / factor, W / factor]
        given = small.permute(0, 2, 3, 1).cpu().numpy()
        drawn = _channels_first(self.generator.sample(batch.captions, batch.sample_ids, low_res=given))
        self.enlarged.update(drawn.to(images.device), images)
        self.bicubic.update(enlarged(small, condition.factor), images)
        return drawn

    @torch.no_grad()
    def _predict(
        self, batch: Batch, epochs: Sequence[int], dropped: Sequence[bool], clean: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """The model's output at x_t: [B, C, h, w]."""
        noised = self.inputs.network_input(self.generator.objective, batch, epochs, clean, noise, t)
        return self.generator.model(noised, t, self.inputs.captions(batch, dropped))


def _channels_first(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
