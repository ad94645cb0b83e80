"""The bottleneck of a KL autoencoder: a Gaussian for each place instead of a code (Rombach et al., 2022, appendix G).

It stands where a quantizer does, with no codes: the autoencoder gives it means and log variances. Called by the
autoencoder; the draws come from the stage, keyed on the sample.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import UserError
from pipeline.quantizers.base import Quantized, Quantizer, QuantizerSettings

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class KlConfig(QuantizerSettings):
    """Continuous latents, held near a standard normal by a small weight."""

    kind: Literal["kl"] = "kl"
    """Chooses this bottleneck."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the divergence of a picture for each of its pixel values, beside the mean error of a pixel value: the
    convention of latent-diffusion, whose 1e-6 this is."""

    @property
    def num_codes(self) -> int:
        """There are none."""
        return 0


class KlBottleneck(Quantizer):
    """Means and log variances [B, 2 d, h, w] in, a draw (or, without noise, the mean) out.

    Args:
        values_per_place: pixel values of the picture for each place of the latent, 3 f^2.
    """

    def __init__(self, config: KlConfig, width: int, values_per_place: int) -> None:
        super().__init__(num_codes=0)
        self.config, self.width, self.values_per_place = config, width, values_per_place

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Quantized:
        with torch.autocast(latent.device.type, enabled=False):
            mean, log_variance = latent.float().chunk(2, dim=1)  # [B, d, h, w] each
            log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
            drawn = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()  # of a place
            losses = {"kl_loss": self.config.kl_weight / self.values_per_place * divergence}
            return Quantized(drawn, mean.new_zeros(0, dtype=torch.long), losses, mean.new_zeros(0))

    def quantize(self, latent: Tensor) -> Quantized:
        return self(latent)

    def prepare(self, latent: Tensor) -> Tensor:
        """The means [B, d, h, w], of moments or of means."""
        return latent[:, : self.width].float()

    def snap(self, latent: Tensor) -> Tensor:
        return latent.float()

    def assign(self, latent: Tensor) -> Tensor:
        raise UserError("this autoencoder has a KL bottleneck and no codes; take its latents")

    def lookup(self, codes: Tensor) -> Tensor:
        raise UserError("this autoencoder has a KL bottleneck and no codes; decode latents")
