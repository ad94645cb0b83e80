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
from pipeline.quantizers.base import Quantizer


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


class TrainedCodes(nn.Module):
    """The codebook as a parameter, first drawn from U(-1/K, 1/K)."""

    def __init__(self, num_codes: int, width: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))
        nn.init.uniform_(self.weight, -1 / num_codes, 1 / num_codes, generator=torch.Generator().manual_seed(seed))

    def forward(self) -> Tensor:
        return self.weight.clone()  # [K, d]; a copy, since ZeRO 3 takes the gathered parameter away afterwards


class GradientQuantizer(Quantizer):
    """Straight-through vector quantizer whose codes are pulled to their vectors by a loss."""

    def __init__(self, config: GradientCodebookConfig, width: int, seed: int) -> None:
        codes = TrainedCodes(config.num_codes, width, seed)
        super().__init__(codes, config.num_codes, config.commitment_weight, config.cosine)
        self.legacy = config.legacy

    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """`commitment_loss` moves the encoder, `codebook_loss` the codes."""
        beta = self.commitment_weight
        on_encoder, on_codebook = (1.0, beta) if self.legacy else (beta, 1.0)
        return {
            "commitment_loss": on_encoder * F.mse_loss(latent, chosen.detach()),
            "codebook_loss": on_codebook * F.mse_loss(chosen, latent.detach()),
        }
