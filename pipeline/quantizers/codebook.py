"""What the quantizers with a learned codebook share: the table of codes, the nearest code, losses on the way.

Subclasses say how the codes learn: `gradient`, `ema`, `simvq`.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.quantizers.base import (
    Quantized,
    Quantizer,
    QuantizerSettings,
    as_map,
    as_vectors,
    count_codes,
    rotated,
    straight_through,
)
from pipeline.quantizers.entropy import entropy_penalty
from pipeline.quantizers.search import nearest_codes


class CodebookConfig(QuantizerSettings):
    """Settings of every learned codebook."""

    num_codes: int = Field(default=16384, gt=1)
    """Size K of the codebook."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the encoder's pull towards its codes: beta of the paper."""
    cosine: bool = False
    """Compare and decode unit vectors (ViT-VQGAN, LlamaGen): the remedy against collapse for small widths."""
    gradient_path: Literal["straight_through", "rotation"] = "straight_through"
    """What the encoder gets of the decoder's gradient: the gradient as it is, or turned with the code."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of `entropy_loss` (Yu et al., "Language Model Beats Diffusion", 2023): each vector sure of its code, all
    codes in use; at 0 nothing is computed."""
    entropy_temperature: float = Field(default=0.01, gt=0)
    """Temperature of the softmax over squared distances in it."""


class CodeTable(nn.Module, ABC):
    """The codes. Whatever reads them does it inside `forward`, where ZeRO 3 has them whole.

    Args:
        cosine: give and compare unit vectors.
    """

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine

    @abstractmethod
    def table(self) -> Tensor:
        """The codes as they are stored [K, d]."""

    def forward(
        self, vectors: Tensor | None = None, codes: Tensor | None = None, whole: bool = False
    ) -> tuple[Tensor, ...]:
        """Codes [N] (the nearest to `vectors` [N, d], unless given), what they stand for [N, d], all [K, d] if `whole`.

        Without vectors and codes only all of them.
        """
        table = self.table()  # [K, d]
        everything = (self._unit(table.clone()),) if whole else ()  # a copy: ZeRO 3 takes the parameter away afterwards
        if codes is None:
            if vectors is None:
                return everything
            codes = nearest_codes(vectors, self._unit(table.detach()))  # [N]
        return (codes, self._unit(F.embedding(codes, table)), *everything)

    def _unit(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.cosine else vectors


class CodebookQuantizer(Quantizer):
    """A codebook and its nearest-code assignment."""

    def __init__(self, config: CodebookConfig, embedding: CodeTable) -> None:
        super().__init__(config.num_codes)
        self.embedding = embedding
        self.settings = config

    def quantize(self, latent: Tensor) -> Quantized:
        settings = self.settings
        vectors = as_vectors(latent)  # [N, d]
        by_entropy = self.training and settings.entropy_weight > 0
        codes, chosen, *everything = self.embedding(vectors, whole=by_entropy)  # [N], [N, d]
        chosen = self.choose(as_map(chosen, latent), latent)  # [B, d, h, w]
        losses = self.losses(chosen, latent)
        if by_entropy:
            penalty = entropy_penalty(vectors, everything[0], settings.entropy_temperature)
            losses["entropy_loss"] = settings.entropy_weight * penalty
        usage = count_codes(codes, self.num_codes)
        codes = codes.reshape(len(latent), *latent.shape[2:])  # [B, h, w]
        return Quantized(self.pass_gradient(chosen, latent), codes, losses, usage)

    @abstractmethod
    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, from the chosen codes and the prepared latents [B, d, h, w]."""

    def choose(self, chosen: Tensor, latent: Tensor) -> Tensor:
        """What takes the place of the latents [B, d, h, w]: the chosen codes, unless the subclass is not ready."""
        return chosen

    def pass_gradient(self, chosen: Tensor, latent: Tensor) -> Tensor:
        """`chosen` with the gradient path of the config, [B, d, h, w]."""
        return (rotated if self.settings.gradient_path == "rotation" else straight_through)(chosen, latent)

    def prepare(self, latent: Tensor) -> Tensor:
        """The latents in the space of the codes: float32, and of unit length for `cosine`. Idempotent."""
        latent = latent.float()
        return F.normalize(latent, dim=1) if self.settings.cosine else latent

    def codebook(self) -> Tensor:
        """The codes as they are compared and decoded: float32 [K, d], of unit length for `cosine`."""
        return self.embedding(whole=True)[0]

    @torch.no_grad()
    def assign(self, latent: Tensor) -> Tensor:
        """Codes of a raw latent map: [B, d, h, w] -> int64 [B, h, w]."""
        codes: Tensor = self.embedding(as_vectors(self.prepare(latent)))[0]
        return codes.reshape(len(latent), *latent.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Latent map of codes: int64 [B, h, w] -> float32 [B, d, h, w]."""
        return self.embedding(codes=codes)[1].permute(0, 3, 1, 2)


def codebook_losses(chosen: Tensor, latent: Tensor, beta: float, legacy: bool = False) -> dict[str, Tensor]:
    """van den Oord et al. (2017), equation 3: `commitment_loss` moves the encoder, `codebook_loss` the codes.

    Args:
        beta: weight of the commitment; `legacy` puts it on the codebook's term.
    """
    on_encoder, on_codebook = (1.0, beta) if legacy else (beta, 1.0)
    return {
        "commitment_loss": on_encoder * F.mse_loss(latent, chosen.detach()),
        "codebook_loss": on_codebook * F.mse_loss(chosen, latent.detach()),
    }
