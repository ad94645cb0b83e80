"""VQ with a codebook that learns by gradient (van den Oord et al., "Neural Discrete Representation Learning", 2017).

The commitment weight stands on the encoder's term, as in the paper; `legacy` puts it on the codebook's term, as
taming-transformers and latent-diffusion do, for continuing their checkpoints. Called by the autoencoder.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.quantizers.codebook import CodebookConfig, CodebookQuantizer, CodeTable, codebook_losses


class GradientCodebookConfig(CodebookConfig):
    """A codebook among the trained parameters."""

    kind: Literal["gradient"] = "gradient"
    """Chooses this quantizer."""
    cosine: bool = True
    """Compare and decode unit vectors (ViT-VQGAN, LlamaGen): the remedy against collapse for small widths."""
    legacy: bool = False
    """beta on the codebook's term in place of the encoder's: only to go on from a taming or LDM checkpoint."""


class TrainedCodes(CodeTable):
    """The codebook as a parameter, first drawn from U(-1/K, 1/K)."""

    def __init__(self, config: GradientCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config.cosine)
        bound = 1 / config.num_codes
        self.weight = nn.Parameter(torch.empty(config.num_codes, width))
        nn.init.uniform_(self.weight, -bound, bound, generator=torch.Generator().manual_seed(seed))

    def table(self) -> Tensor:
        return self.weight  # [K, d]


class GradientQuantizer(CodebookQuantizer):
    """Vector quantizer whose codes are pulled to their vectors by a loss."""

    def __init__(self, config: GradientCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config, TrainedCodes(config, width, seed))
        self.config = config

    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """`commitment_loss` and `codebook_loss`."""
        return codebook_losses(chosen, latent, self.config.commitment_weight, self.config.legacy)
