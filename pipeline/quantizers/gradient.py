"""VQ with a codebook that learns by gradient (van den Oord et al., "Neural Discrete Representation Learning", 2017).

The commitment weight stands on the encoder's term, as in the paper; `legacy` puts it on the codebook's term, as
taming-transformers and latent-diffusion do, for continuing their checkpoints. Called by the autoencoder.
"""
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.quantizers.base import Quantized, Quantizer, count_codes, perplexity_of, straight_through


class GradientCodebookConfig(Config):
    """A codebook among the trained parameters."""

    kind: Literal["gradient"] = "gradient"
    """Chooses this quantizer."""
    num_codes: int = Field(default=16384, gt=1)
    """Size K of the codebook."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """beta of the paper."""
    cosine: bool = True
    """Compare and decode unit vectors (ViT-VQGAN, LlamaGen): the remedy against collapse for small widths."""
    legacy: bool = False
    """beta on the codebook's term in place of the encoder's: only to go on from a taming or LDM checkpoint."""


class GradientQuantizer(Quantizer):
    """Straight-through vector quantizer; the codebook starts at U(-1/K, 1/K)."""

    def __init__(self, config: GradientCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config.num_codes, width, config.commitment_weight, config.cosine)
        self.legacy = config.legacy
        self.weight = nn.Parameter(torch.empty(config.num_codes, width))
        generator = torch.Generator().manual_seed(seed)
        nn.init.uniform_(self.weight, -1 / config.num_codes, 1 / config.num_codes, generator=generator)

    def codebook(self) -> Tensor:
        """The parameter, normalised at use for `cosine`."""
        return F.normalize(self.weight, dim=1) if self.cosine else self.weight

    def forward(self, latent: Tensor) -> Quantized:  # [B, d, h, w]
        with torch.autocast(latent.device.type, enabled=False):
            latent = self.prepare(latent)
            codes = self.assign(latent)  # [B, h, w]
            chosen = self.lookup(codes)  # [B, d, h, w]
            to_codes = F.mse_loss(latent, chosen.detach())
            to_encoder = F.mse_loss(chosen, latent.detach())
            encoder_weight, codebook_weight = (
                (1.0, self.commitment_weight) if self.legacy else (self.commitment_weight, 1.0)
            )
            losses = {"commitment_loss": encoder_weight * to_codes, "codebook_loss": codebook_weight * to_encoder}
            perplexity = perplexity_of(count_codes(codes, self.num_codes))
            return Quantized(straight_through(chosen, latent), codes, losses, perplexity)
