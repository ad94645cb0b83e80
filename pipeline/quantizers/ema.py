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

from pipeline.quantizers.base import as_vectors
from pipeline.quantizers.codebook import CodebookConfig, CodebookQuantizer, CodeTable
from pipeline.quantizers.kmeans import code_statistics, draw_vectors, fit_codes

EPSILON = 1e-5
"""Laplace smoothing of the counts."""


class EmaCodebookConfig(CodebookConfig):
    """A codebook that follows the encoder by moving averages; it has no gradient and no optimizer state."""

    kind: Literal["ema"] = "ema"
    """Chooses this quantizer."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averages of counts and sums at each step."""
    start_step: int = Field(default=0, ge=0)
    """Generator step at which k-means places the codes; before it latents pass unquantised, so that the codebook is
    fitted to an encoder that already knows the pictures."""
    revive_every_steps: int = Field(default=100, gt=0)
    """How often codes out of use are looked for."""
    revive_below_share: float = Field(default=0.03, ge=0, lt=1)
    """A code is out of use when its averaged count is below this share of the mean count; 0 revives none."""


class AveragedCodes(CodeTable):
    """The codebook with the averaged counts and sums that it is the quotient of; all are buffers."""

    weight: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: EmaCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config.cosine)
        codes = torch.randn(config.num_codes, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", codes)
        self.register_buffer("counts", torch.ones(config.num_codes))
        self.register_buffer("sums", codes.clone())

    def table(self) -> Tensor:
        return self.weight  # [K, d]

    def adopt(self, codes: Tensor, counts: Tensor) -> None:
        """Start the averages at fitted codes [K, d]; an empty cluster counts as one vector."""
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(codes * self.counts[:, None])
        self.weight.copy_(codes)

    def average(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        """Take in the counts [K] and sums [K, d] of one global batch."""
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        total = self.counts.sum()
        smoothed = (self.counts + EPSILON) / (total + len(self.counts) * EPSILON) * total
        self.weight.copy_(self.sums / smoothed[:, None])

    def revive(self, drawn: Tensor, below_share: float) -> None:
        """Place codes out of use on drawn vectors [K, d], with the mean count, so that they have time to find a use."""
        mean = self.counts.mean()
        dead = self.counts < below_share * mean  # [K]
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], drawn * mean, self.sums))
        self.weight.copy_(torch.where(dead[:, None], drawn, self.weight))


class EmaQuantizer(CodebookQuantizer):
    """Vector quantizer whose codes are averages of the vectors assigned to them."""

    embedding: AveragedCodes
    active: Tensor

    def __init__(self, config: EmaCodebookConfig, width: int, seed: int) -> None:
        super().__init__(config, AveragedCodes(config, width, seed))
        self.config = config
        self.seed = seed
        self.register_buffer("active", torch.tensor(False))

    def choose(self, chosen: Tensor, latent: Tensor) -> Tensor:
        """The latents themselves until the codes are placed; decided on the device, without waiting for it."""
        return torch.where(self.active, chosen, latent.detach())

    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """`commitment_loss` keeps the encoder near its codes; the codes need no loss."""
        return {"commitment_loss": self.config.commitment_weight * F.mse_loss(latent, chosen)}

    def in_use(self, step: int) -> bool:
        """Once k-means has placed them."""
        return step > self.config.start_step

    def places_codes_at(self, step: int) -> bool:
        """At `start_step`, by k-means."""
        return step == self.config.start_step

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, step: int) -> None:
        """One step of the averages; at `start_step` the k-means fit, and now and then the revival. Collective."""
        age = step - self.config.start_step
        if age < 0:
            return
        vectors, per_sample = as_vectors(self.prepare(latent)), latent[0, 0].numel()  # [N, d], h w
        if age == 0:
            self.embedding.adopt(*fit_codes(vectors, per_sample, self.num_codes, self.seed))
            self.active.fill_(True)
            return
        counts, sums = code_statistics(vectors, codes.flatten(), self.num_codes)
        self.embedding.average(counts, sums, self.config.decay)
        if age % self.config.revive_every_steps == 0:
            drawn = draw_vectors(vectors, per_sample, self.num_codes, self.seed, step)  # [K, d]
            self.embedding.revive(drawn, self.config.revive_below_share)
