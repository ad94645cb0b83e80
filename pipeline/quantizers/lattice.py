"""Quantizers whose codes are the points of a fixed lattice and never learn: FSQ and LFQ. Called by the autoencoder."""

import math
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from pipeline.quantizers.base import Quantized, Quantizer, QuantizerSettings, as_vectors, count_codes, straight_through
from pipeline.quantizers.entropy import entropy_penalty

BOUND_MARGIN = 1e-3
"""How far beyond the outermost levels FSQ's tanh reaches, so that they can be rounded to."""


class FsqConfig(QuantizerSettings):
    """Finite scalar quantisation (Mentzer et al., 2023): each channel rounded to a few levels, no loss, no codebook."""

    kind: Literal["fsq"] = "fsq"
    """Chooses this quantizer."""
    levels: tuple[int, ...] = Field(default=(8, 8, 8, 5, 5, 5), min_length=1)
    """Levels of each channel; `embedding_dim` is their number, K their product."""

    @field_validator("levels")
    @classmethod
    def _can_be_rounded_to(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 2:
            raise ValueError(f"levels {levels}: each channel needs at least 2")
        return levels

    @property
    def num_codes(self) -> int:
        """K."""
        return math.prod(self.levels)

    def check_width(self, width: int) -> None:
        """`width` is the number of channels with levels."""
        if width != len(self.levels):
            raise ValueError(f"embedding_dim {width} is not the number of fsq levels, {len(self.levels)}")


class LfqConfig(QuantizerSettings):
    """Lookup-free quantisation (Yu et al., "Language Model Beats Diffusion", 2023): the signs of the channels."""

    kind: Literal["lfq"] = "lfq"
    """Chooses this quantizer."""
    num_codes: int = Field(default=2**10, gt=1)
    """K: 2 to the power of `embedding_dim`."""
    bit_order: Literal["little", "big"] = "little"
    """Whether channel 0 is the lowest bit of a code (Open-MAGVIT2) or the highest (vector-quantize-pytorch)."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the encoder's pull towards its signs."""
    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of `entropy_loss`, exact over all K codes: its time grows with K, its memory does not."""
    entropy_temperature: float = Field(default=0.01, gt=0)
    """Temperature of the softmax over squared distances in it."""

    def check_width(self, width: int) -> None:
        """One bit for each channel."""
        if self.num_codes != 2**width:
            raise ValueError(f"lfq num_codes {self.num_codes} is not 2 ** embedding_dim = {2**width}")


class FsqQuantizer(Quantizer):
    """Rounds each channel; channel 0 changes the code fastest."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FsqConfig) -> None:
        super().__init__(config.num_codes)
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        basis = torch.tensor([1, *config.levels[:-1]]).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)

    def quantize(self, latent: Tensor) -> Quantized:
        """Losses are empty: nothing but the picture teaches the encoder."""
        bounded = self._bound(latent)  # [B, d, h, w], the levels at whole numbers
        rounded = bounded.round()
        codes = self._number(rounded)  # [B, h, w]
        passed = straight_through(rounded, bounded) / self._column(self.levels // 2)
        return Quantized(passed, codes, {}, count_codes(codes, self.num_codes))

    @torch.no_grad()
    def assign(self, latent: Tensor) -> Tensor:
        return self._number(self._bound(latent.float()).round())

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[:, None] // self._column(self.basis) % self._column(self.levels)  # [B, d, h, w]
        half = self._column(self.levels // 2)
        return (digits - half) / half

    def _bound(self, latent: Tensor) -> Tensor:
        """tanh, stretched and shifted so that rounding gives exactly the channel's levels (equation 1)."""
        levels = self._column(self.levels).float()
        half = (levels - 1) * (1 + BOUND_MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(latent + (offset / half).atanh()) * half - offset

    def _number(self, rounded: Tensor) -> Tensor:
        """Whole numbers [B, d, h, w] to codes [B, h, w]."""
        digits = rounded.long() + self._column(self.levels // 2)
        return (digits * self._column(self.basis)).sum(1)

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values[:, None, None]


class LfqQuantizer(Quantizer):
    """+1 where a channel is above 0, else -1; the signs are the bits of the code."""

    basis: Tensor

    def __init__(self, config: LfqConfig, width: int) -> None:
        super().__init__(config.num_codes)
        self.config = config
        bits = 2 ** torch.arange(width)
        self.register_buffer("basis", bits if config.bit_order == "little" else bits.flip(0), persistent=False)

    def quantize(self, latent: Tensor) -> Quantized:
        """`commitment_loss`, and in training `entropy_loss`."""
        signs = torch.where(latent > 0, 1.0, -1.0)  # [B, d, h, w]
        losses = {"commitment_loss": self.config.commitment_weight * F.mse_loss(latent, signs)}
        if self.training and self.config.entropy_weight:
            corners = self._signs(torch.arange(self.num_codes, device=latent.device))  # [K, d]
            penalty = entropy_penalty(as_vectors(latent), corners, self.config.entropy_temperature)
            losses["entropy_loss"] = self.config.entropy_weight * penalty
        codes = self.assign(latent)
        return Quantized(straight_through(signs, latent), codes, losses, count_codes(codes, self.num_codes))

    @torch.no_grad()
    def assign(self, latent: Tensor) -> Tensor:
        return ((latent > 0) * self.basis[:, None, None]).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return self._signs(codes).permute(0, 3, 1, 2)

    def _signs(self, codes: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., d]."""
        return torch.where((codes[..., None] & self.basis) > 0, 1.0, -1.0)
