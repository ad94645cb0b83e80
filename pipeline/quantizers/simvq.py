"""SimVQ: frozen random codes behind one trained linear map (Zhu et al., "Addressing Representation Collapse", 2024).

Every step moves the map and with it every code, used or not, so that none is left behind. Called by the autoencoder.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.quantizers.codebook import CodebookConfig, CodebookQuantizer, CodeTable, codebook_losses


class SimVqConfig(CodebookConfig):
    """A frozen table of N(0, 1/d) and a trained map of it."""

    kind: Literal["simvq"] = "simvq"
    """Chooses this quantizer."""


class MappedCodes(CodeTable):
    """The frozen table and its map."""

    base: Tensor

    def __init__(self, config: SimVqConfig, width: int, seed: int) -> None:
        super().__init__(config.cosine)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("base", torch.randn(config.num_codes, width, generator=generator) * width**-0.5)
        self.projection = nn.Linear(width, width)
        bound = width**-0.5
        for parameter in self.projection.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def table(self) -> Tensor:
        return self.projection(self.base)  # [K, d]


class SimVqQuantizer(CodebookQuantizer):
    """Vector quantizer whose codes move together."""

    def __init__(self, config: SimVqConfig, width: int, seed: int) -> None:
        super().__init__(config, MappedCodes(config, width, seed))

    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """`commitment_loss` and `codebook_loss`."""
        return codebook_losses(chosen, latent, self.settings.commitment_weight)
