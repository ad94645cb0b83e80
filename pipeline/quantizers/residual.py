"""Residual quantisation: each stage quantises what those before it left over (Lee et al., RQ-VAE, 2022, section 3.1).

The codes of stage q are numbered from q K, so that they are counted and looked up as one codebook of Q K codes.
Called by the autoencoder.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.quantizers.base import Quantized, Quantizer, QuantizerSettings
from pipeline.quantizers.codebook import CodebookQuantizer
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.simvq import SimVqConfig


class ResidualConfig(QuantizerSettings):
    """Several codebooks, one after the other."""

    kind: Literal["residual"] = "residual"
    """Chooses this quantizer."""
    num_stages: int = Field(default=4, gt=1)
    """Q: codes for each place."""
    stage: Annotated[GradientCodebookConfig | EmaCodebookConfig | SimVqConfig, Field(discriminator="kind")]
    """The codebook of each stage, K codes."""

    @model_validator(mode="after")
    def _leaves_lengths(self) -> "ResidualConfig":
        if self.stage.cosine:
            raise ValueError("stage.cosine is true: a residual is told by its length too; set cosine: false")
        return self

    @property
    def num_codes(self) -> int:
        """Q K."""
        return self.num_stages * self.stage.num_codes


class ResidualQuantizer(Quantizer):
    """The sum of the stages' codes; the encoder gets one gradient, and a commitment loss from each stage."""

    def __init__(self, config: ResidualConfig, stages: list[CodebookQuantizer]) -> None:
        super().__init__(config.num_codes)
        self.stages = nn.ModuleList(stages)
        self.per_stage = config.stage.num_codes

    def quantize(self, latent: Tensor) -> Quantized:
        rest, parts = latent, []
        for stage in self.codebooks:
            parts.append(stage.quantize(rest))
            rest = rest - parts[-1].latent.detach()  # [B, d, h, w]; the encoder's gradient goes on through `latent`
        total = torch.stack([part.latent.detach() for part in parts]).sum(0)  # [B, d, h, w]
        losses = {name: torch.stack([part.losses[name] for part in parts]).sum() for name in parts[0].losses}
        codes = torch.stack([part.codes for part in parts], dim=-1) + self._first_codes(latent)  # [B, h, w, Q]
        passed = self.codebooks[0].pass_gradient(total, latent)
        return Quantized(passed, codes, losses, torch.cat([part.usage for part in parts]))

    @torch.no_grad()
    def assign(self, latent: Tensor) -> Tensor:
        rest, planes = latent.float(), []
        for stage in self.codebooks:
            planes.append(stage.assign(rest))
            rest = rest - stage.lookup(planes[-1])
        return torch.stack(planes, dim=-1) + self._first_codes(latent)

    def lookup(self, codes: Tensor) -> Tensor:
        planes = (codes - self._first_codes(codes)).unbind(-1)
        parts = [stage.lookup(plane) for stage, plane in zip(self.codebooks, planes, strict=True)]
        return torch.stack(parts).sum(0)

    def in_use(self, step: int) -> bool:
        """When those of every stage are."""
        return all(stage.in_use(step) for stage in self.codebooks)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, step: int) -> None:
        """Each stage learns from what the codes of this batch left over before it."""
        rest = latent
        for stage, plane in zip(self.codebooks, (codes - self._first_codes(codes)).unbind(-1), strict=True):
            part = stage.lookup(plane)
            stage.update(rest, plane, step)
            if stage.places_codes_at(step):
                part = stage.lookup(stage.assign(rest))
            rest = rest - part

    @property
    def codebooks(self) -> list[CodebookQuantizer]:
        """The stages, in their order."""
        return [stage for stage in self.stages if isinstance(stage, CodebookQuantizer)]

    def _first_codes(self, like: Tensor) -> Tensor:
        """Where the numbers of each stage begin [Q]."""
        return torch.arange(len(self.stages), device=like.device) * self.per_stage
