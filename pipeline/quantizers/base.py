"""What every quantizer gives and how it is called: `Quantized`, `Quantizer`, and how codes are counted.

N vectors of width d, K codes; latents are maps [B, d, h, w] with one vector at each place. Called by the
autoencoder (forward, assign, lookup) and by its stage (update).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config


class Quantized(NamedTuple):
    """One quantised latent map. A tuple, because ZeRO 3 finds the tensors of a module's output in tuples only."""

    latent: Tensor
    """float32 [B, d, h, w]: exactly the chosen codes; its gradient is passed on to the encoder."""
    codes: Tensor
    """int64 [B, h, w], or [B, h, w, Q] of a quantizer with Q stages; each in [0, K)."""
    losses: dict[str, Tensor]
    """Weighted scalar terms; their sum is added to the loss of the generator."""
    usage: Tensor
    """float32 [K]: how often each code occurs in this batch on this rank; sums of it over batches and ranks count."""


class QuantizerSettings(Config):
    """What the configs of all quantizers answer."""

    def check_width(self, width: int) -> None:
        """Raise ValueError unless the quantizer can have vectors of `width`."""
        return None


class Quantizer(nn.Module, ABC):
    """Turns latents into codes and codes into latents.

    Args:
        num_codes: K, over all stages; 0 when there are none (KL).
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Quantized:
        """Quantise a raw latent map [B, d, h, w], in float32 whatever the precision around it.

        Args:
            noise: standard normal [B, d, h, w], for a bottleneck that draws (KL).
        """
        with torch.autocast(latent.device.type, enabled=False):
            return self.quantize(self.prepare(latent))

    @abstractmethod
    def quantize(self, latent: Tensor) -> Quantized:
        """`forward` of a prepared latent map [B, d, h, w]."""

    @abstractmethod
    def assign(self, latent: Tensor) -> Tensor:
        """Codes of a raw latent map: [B, d, h, w] -> int64 [B, h, w] or [B, h, w, Q]."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Latent map of codes: int64 [B, h, w] or [B, h, w, Q] -> float32 [B, d, h, w]."""

    def snap(self, latent: Tensor) -> Tensor:
        """What the decoder gets for a raw latent map [B, d, h, w]: its codes' vectors [B, d, h, w]."""
        return self(latent).latent

    def prepare(self, latent: Tensor) -> Tensor:
        """The latents in the space of the codes, float32 [B, d, h, w]. Idempotent."""
        return latent.float()

    def places_codes_at(self, step: int) -> bool:
        """Whether `update` at generator step `step` moves all codes, so that earlier assignments mean nothing."""
        return False

    def in_use(self, step: int) -> bool:
        """Whether the codes of a forward at generator step `step` are what the decoder gets."""
        return True

    def update(self, latent: Tensor, codes: Tensor, step: int) -> None:
        """Let the codebook learn from one training batch, after its optimizer step; collective over ranks.

        Args:
            latent: raw latents of the batch [B, d, h, w].
            codes: their codes [B, h, w].
            step: generator step, from 0.
        """
        return None


def as_vectors(latent: Tensor) -> Tensor:
    """[B, d, h, w] -> [B * h * w, d], pictures first, then rows."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)


def as_map(vectors: Tensor, like: Tensor) -> Tensor:
    """[B * h * w, d] -> [B, d, h, w], for the B, h and w of the map `like`."""
    return vectors.unflatten(0, (len(like), *like.shape[2:])).permute(0, 3, 1, 2)


def straight_through(chosen: Tensor, latent: Tensor) -> Tensor:
    """Exactly `chosen` going forward (z - z is 0, unlike z + (e - z)), the identity on `latent` going backward."""
    return chosen.detach() + (latent - latent.detach())


def rotated(chosen: Tensor, latent: Tensor) -> Tensor:
    """Exactly `chosen` going forward; backward, the rotation and scaling that carry each latent onto its code.

    Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024, section 4: a Householder pair.

    Args:
        chosen: codes' vectors [B, d, h, w].
        latent: what they stand for [B, d, h, w].
    """
    with torch.no_grad():
        u, q = F.normalize(latent, dim=1), F.normalize(chosen, dim=1)
        w = F.normalize(u + q, dim=1)
        scale = chosen.norm(dim=1, keepdim=True) / latent.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along_w = (latent * w).sum(1, keepdim=True) * w
    along_u = (latent * u).sum(1, keepdim=True) * q
    turned = (latent - 2 * along_w + 2 * along_u) * scale  # [B, d, h, w]
    return straight_through(chosen, turned)


def count_codes(codes: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs: int64 of any shape -> float32 [K]."""
    ones = torch.ones(codes.numel(), device=codes.device)
    return torch.zeros(num_codes, device=codes.device).index_add_(0, codes.flatten(), ones)


def perplexity_of(counts: Tensor) -> Tensor:
    """exp(H) of the distribution that `counts` [K] describes: K when all are used equally, 1 after collapse."""
    share = counts / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(share, share).sum())
