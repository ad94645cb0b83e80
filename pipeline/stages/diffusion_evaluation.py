"""Figures of an exported latent UNet on held-out data: its loss, and what its pictures are worth. Called by `tessera
evaluate`.

Every model has a validation loss, so that a gate can judge it whatever its data shows. Pictures are judged where that
can be done exactly: drawn shapes by their captions, enlarged pictures by the originals.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.evaluate.captions import CAPTIONS, CaptionMeter
from pipeline.evaluate.denoising import DENOISING, DenoisingMeter
from pipeline.evaluate.reconstruction import PictureMeter
from pipeline.generate import Generator
from pipeline.models.condition import enlarged, shrunk
from pipeline.randomness import Draws
from pipeline.stages.diffusion_inputs import Inputs, validation_losses

ENLARGEMENT = {
    "name": "enlargement-1",
    "small": "bicubic with antialiasing, rounded to 8 bit; enlarged again by bicubic interpolation as the baseline",
    "psnr, ssim": "against the original picture, as in reconstruction-1",
}
"""How a model that enlarges is measured."""


@dataclass
class UNetMeter:
    """The meters of one model; `compute` is collective."""

    generator: Generator
    denoising: DenoisingMeter = field(default_factory=DenoisingMeter)
    captions: CaptionMeter = field(default_factory=CaptionMeter)

    def __post_init__(self) -> None:
        generator = self.generator
        self.enlarged, self.bicubic = PictureMeter(generator.device), PictureMeter(generator.device)
        self.inputs = Inputs(generator.text, generator.autoencoder, generator.condition, Draws(0))

    @property
    def enlarges(self) -> bool:
        """Whether the model needs a picture to enlarge, and is judged by the original."""
        condition = self.generator.condition
        return condition is not None and condition.kind == "upscale"

    def measure(self, batches: Iterable[Batch]) -> None:
        """Add every sample; the picture of a caption has the sample's number as its seed.

        Raises:
            UserError: a model that learnt on pictures, and data that holds latents.
        """
        for batch in batches:
            if not batch.sample_ids:
                continue
            losses = validation_losses(batch, self.inputs, self.generator.objective, self._predict)  # [B]
            self.denoising.update(losses, batch.sample_ids)
            if self.enlarges:
                self._enlarge(batch)
            elif CaptionMeter.reads(batch.captions):
                self.captions.update(self.generator.sample(batch.captions, batch.sample_ids), batch.captions)

    def compute(self) -> dict[str, float]:
        """All figures by name."""
        figures = {**self.denoising.compute(), **self.captions.compute()}
        if self.enlarges:
            figures |= self.enlarged.compute()
            figures |= {f"{name}_bicubic": value for name, value in self.bicubic.compute().items()}
        return figures

    def protocol(self) -> dict[str, Any]:
        """How the figures were measured, but for the data."""
        parts = [DENOISING, ENLARGEMENT if self.enlarges else CAPTIONS]
        merged = {name: value for part in parts for name, value in part.items()}
        sampling = self.generator.sampling.model_dump(mode="json")
        return {**merged, "name": " and ".join(part["name"] for part in parts), "sampling": sampling}

    def _enlarge(self, batch: Batch) -> None:
        """Shrink the batch's pictures, draw them large again, compare."""
        condition = self.generator.condition
        assert condition is not None and condition.kind == "upscale"
        if batch.images is None:
            raise UserError("--data: holds latents; a model that enlarges is judged on pictures")
        images = batch.images.to(self.generator.device)  # [B, 3, H, W]
        small = shrunk(images, condition.factor)  # [B, 3, H / factor, W / factor]
        given = small.permute(0, 2, 3, 1).cpu().numpy()
        drawn = self.generator.sample(batch.captions, batch.sample_ids, low_res=given)  # [B, H, W, 3]
        self.enlarged.update(torch.from_numpy(drawn).permute(0, 3, 1, 2).to(images.device), images)
        self.bicubic.update(enlarged(small, condition.factor), images)

    @torch.no_grad()
    def _predict(
        self, batch: Batch, epochs: Sequence[int], dropped: Sequence[bool], clean: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """The model's output at x_t: [B, C, h, w]."""
        noised = self.inputs.network_input(self.generator.objective, batch, epochs, clean, noise, t)
        return self.generator.model(noised, t, self.inputs.captions(batch, dropped))
