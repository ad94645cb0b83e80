"""VQ with a codebook of moving averages (van den Oord et al., 2017, appendix A.1), equal on any number of ranks.

The codebook is a buffer. Counts and sums are added over ranks before they enter the averages; the first codes come
from k-means over the global batch, and codes that fall out of use are placed anew on vectors of the global batch, by
draws keyed on the step alone (Dhariwal et al., "Jukebox", 2020; Lancucki et al., "Robust Training of Vector Quantized
Bottleneck Models", 2020). `forward` changes nothing; the stage calls `update`.
"""
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.quantizers.base import Quantized, Quantizer, as_vectors, count_codes, perplexity_of, straight_through
from pipeline.quantizers.kmeans import code_statistics, draw_vectors, fit_codes


class EmaCodebookConfig(Config):
    """A codebook that follows the encoder by moving averages; it has no gradient and no optimizer state."""

    kind: Literal["ema"] = "ema"
    """Chooses this quantizer."""
    num_codes: int = Field(default=16384, gt=1)
    """Size K of the codebook."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the encoder's pull towards its codes."""
    cosine: bool = False
    """Compare and decode unit vectors."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averages of counts and sums at each step."""
    start_step: int = Field(default=0, ge=0)
    """Generator step at which k-means places the codes; before it latents pass unquantised, so that the codebook is
    fitted to an encoder that already knows the pictures."""
    revive_every_steps: int = Field(default=100, gt=0)
    """How often codes out of use are looked for."""
    revive_below_share: float = Field(default=0.03, ge=0, lt=1)
    """A code is out of use when its averaged count is below this share of the mean count; 0 revives none."""


class EmaQuantizer(Quantizer):
    """Straight-through vector quantizer whose codes are averages of the vectors assigned to them."""

    weight: Tensor
    counts: Tensor
    sums: Tensor
    active: Tensor

    EPSILON = 1e-5
    """Laplace smoothing of the counts."""

    def __init__(self, config: EmaCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config.num_codes, width, config.commitment_weight, config.cosine)
        self.config = config
        self.seed = seed
        codes = torch.randn(config.num_codes, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", codes)
        self.register_buffer("counts", torch.ones(config.num_codes))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("active", torch.tensor(False))

    def codebook(self) -> Tensor:
        """The averages, normalised at use for `cosine`."""
        return F.normalize(self.weight, dim=1) if self.cosine else self.weight

    def forward(self, latent: Tensor) -> Quantized:  # [B, d, h, w]
        with torch.autocast(latent.device.type, enabled=False):
            latent = self.prepare(latent)
            codes = self.assign(latent)  # [B, h, w]
            chosen = torch.where(self.active, self.lookup(codes), latent.detach())  # [B, d, h, w]
            losses = {"commitment_loss": self.commitment_weight * F.mse_loss(latent, chosen)}
            perplexity = perplexity_of(count_codes(codes, self.num_codes))
            return Quantized(straight_through(chosen, latent), codes, losses, perplexity)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, step: int) -> None:
        """One step of the averages; at `start_step` the k-means fit, and now and then the revival. Collective."""
        vectors = as_vectors(self.prepare(latent))
        if step < self.config.start_step:
            return
        if step == self.config.start_step:
            self._adopt(*fit_codes(vectors, self.num_codes, self.seed))
            self.active.fill_(True)
            return
        counts, sums = code_statistics(vectors, codes.flatten(), self.num_codes)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        if (step - self.config.start_step) % self.config.revive_every_steps == 0:
            self._revive(vectors, step)
        self._refresh()

    def _adopt(self, codes: Tensor, counts: Tensor) -> None:
        """Start the averages at fitted codes; an empty cluster counts as one vector."""
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(codes * self.counts[:, None])
        self._refresh()

    def _revive(self, vectors: Tensor, step: int) -> None:
        """Place the codes out of use on drawn vectors, with the mean count, so that they have time to find a use."""
        mean = self.counts.mean()
        dead = self.counts < self.config.revive_below_share * mean  # [K]
        drawn = draw_vectors(vectors, self.num_codes, self.seed, step)  # [K, d]
        self.sums.copy_(torch.where(dead[:, None], drawn * mean, self.sums))
        self.counts.copy_(torch.where(dead, mean, self.counts))

    def _refresh(self) -> None:
        """The codes that the averages stand for."""
        total = self.counts.sum()
        smoothed = (self.counts + self.EPSILON) / (total + self.num_codes * self.EPSILON) * total
        self.weight.copy_(self.sums / smoothed[:, None])
