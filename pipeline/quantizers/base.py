"""What every quantizer gives and how it is called: `Quantized`, `Quantizer`, and how codes are counted.

N vectors of width d, K codes; latents are maps [B, d, h, w] with one vector at each place. Called by the
autoencoder (forward, assign, lookup) and by its stage (update).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.quantizers.search import nearest_codes


class Quantized(NamedTuple):
    """One quantised latent map. A tuple, because ZeRO 3 finds the tensors of a module's output in tuples only."""

    latent: Tensor
    """float32 [B, d, h, w]: exactly the chosen codes; its gradient is passed straight through to the encoder."""
    codes: Tensor
    """int64 [B, h, w]."""
    losses: dict[str, Tensor]
    """Weighted scalar terms; their sum is added to the loss of the generator."""
    perplexity: Tensor
    """exp of the entropy of the codes of this batch on this rank: K when all are used equally, 1 after collapse."""


class Quantizer(nn.Module, ABC):
    """A codebook and its nearest-code assignment; subclasses say how the codebook learns.

    Args:
        embedding: holds `weight` [K, d], and gives it, whole, when called without arguments.
        commitment_weight: weight of the commitment loss.
        cosine: compare and decode unit vectors.
    """

    def __init__(self, embedding: nn.Module, num_codes: int, commitment_weight: float, cosine: bool) -> None:
        super().__init__()
        self.embedding = embedding
        self.num_codes = num_codes
        self.commitment_weight = commitment_weight
        self.cosine = cosine

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise a raw latent map [B, d, h, w], in float32 whatever the precision around it."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = self.prepare(latent)
            codebook = self.codebook()  # [K, d]
            codes = _assign(latent, codebook)  # [B, h, w]
            chosen = self.choose(_lookup(codes, codebook), latent)  # [B, d, h, w]
            perplexity = perplexity_of(count_codes(codes, self.num_codes))
            return Quantized(straight_through(chosen, latent), codes, self.losses(chosen, latent), perplexity)

    @abstractmethod
    def losses(self, chosen: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, from the chosen codes and the prepared latents [B, d, h, w]."""

    def choose(self, chosen: Tensor, latent: Tensor) -> Tensor:
        """What takes the place of the latents [B, d, h, w]: the chosen codes, unless the subclass is not ready."""
        return chosen

    def update(self, latent: Tensor, codes: Tensor, step: int) -> None:
        """Let the codebook learn from one training batch, after its optimizer step; collective over ranks.

        Args:
            latent: raw latents of the batch [B, d, h, w].
            codes: their codes [B, h, w].
            step: generator step, from 0.
        """
        return None

    def prepare(self, latent: Tensor) -> Tensor:
        """The latents in the space of the codes: float32, and of unit length for `cosine`. Idempotent."""
        latent = latent.float()
        return F.normalize(latent, dim=1) if self.cosine else latent

    def codebook(self) -> Tensor:
        """The codes as they are compared and decoded: float32 [K, d], of unit length for `cosine`."""
        codes: Tensor = self.embedding()
        return F.normalize(codes, dim=1) if self.cosine else codes

    def assign(self, latent: Tensor) -> Tensor:
        """Codes of a raw latent map: [B, d, h, w] -> int64 [B, h, w]."""
        return _assign(self.prepare(latent), self.codebook())

    def lookup(self, codes: Tensor) -> Tensor:
        """Latent map of codes: int64 [B, h, w] -> float32 [B, d, h, w]."""
        return _lookup(codes, self.codebook())


def _assign(latent: Tensor, codebook: Tensor) -> Tensor:
    return nearest_codes(as_vectors(latent), codebook).reshape(len(latent), *latent.shape[2:])


def _lookup(codes: Tensor, codebook: Tensor) -> Tensor:
    return F.embedding(codes, codebook).permute(0, 3, 1, 2)


def as_vectors(latent: Tensor) -> Tensor:
    """[B, d, h, w] -> [B * h * w, d], pictures first, then rows."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)


def straight_through(chosen: Tensor, latent: Tensor) -> Tensor:
    """Exactly `chosen` going forward (z - z is 0, unlike z + (e - z)), the identity on `latent` going backward."""
    return chosen.detach() + (latent - latent.detach())


def count_codes(codes: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs: int64 of any shape -> float32 [K]."""
    ones = torch.ones(codes.numel(), device=codes.device)
    return torch.zeros(num_codes, device=codes.device).index_add_(0, codes.flatten(), ones)


def perplexity_of(counts: Tensor) -> Tensor:
    """exp(H) of the distribution that `counts` [K] describes."""
    share = counts / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(share, share).sum())
