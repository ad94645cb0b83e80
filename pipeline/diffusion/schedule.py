"""Noise schedules of discrete-time diffusion, and the lists of timesteps at which a sampler stops.

A schedule is one table, abar[t] = product of (1 - beta) up to t, built in float64; everything else follows from it.
x_t = sqrt(abar) * x0 + sqrt(1 - abar) * noise (Ho et al., arXiv 2006.11239, eq. 4). Used by the objective (training)
and by the samplers, so both see the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, UserError

Spacing = Literal["leading", "trailing", "linspace"]


class ScheduleConfig(Config):
    """Which noise schedule; the defaults are those of Stable Diffusion. LDM's VQ models use .0015 to .0195."""

    kind: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    """scaled_linear: sqrt(beta) is linear (LDM: "linear"); linear: beta is (DDPM, DiT); cosine: arXiv 2102.09672."""
    num_timesteps: int = Field(default=1000, gt=1)
    """Length of the table."""
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """beta at t = 0; not used by cosine."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """beta at the last t; not used by cosine."""
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is pure noise (arXiv 2305.08891); needs v or x0 prediction."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The table of one schedule and what follows from it."""

    alphas_cumprod: Tensor
    """abar, float64 [num_timesteps] on the CPU, falling."""

    @property
    def num_timesteps(self) -> int:
        """Length of the table."""
        return len(self.alphas_cumprod)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio abar / (1 - abar), float64 [num_timesteps]; 0 at a zero-terminal end."""
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) at timesteps `t` [B], in float32 on `like`'s device, shaped [B, 1, 1, ...]."""
        abar = self.alphas_cumprod[t.cpu()]  # [B]
        shape = (-1, *[1] * (like.ndim - 1))
        signal, noise = abar.sqrt().to(like.device, torch.float32), (1.0 - abar).sqrt().to(like.device, torch.float32)
        return signal.view(shape), noise.view(shape)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents [B, ...] at timesteps `t` [B] with the given standard normal noise [B, ...]."""
        signal_scale, noise_scale = self.scales(t, clean)
        return signal_scale * clean + noise_scale * noise


def build_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule that `config` describes; the zero-terminal rescale comes before anything else is derived."""
    alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
    if config.zero_terminal_snr:
        alphas_cumprod = zero_terminal(alphas_cumprod)
    return NoiseSchedule(alphas_cumprod)


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that its last entry is 0 and its first is kept (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _betas(config: ScheduleConfig) -> Tensor:
    """float64 [num_timesteps]."""
    num, start, end = config.num_timesteps, config.beta_start, config.beta_end
    if config.kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), num, dtype=torch.float64) ** 2
    if config.kind == "linear":
        return torch.linspace(start, end, num, dtype=torch.float64)
    offset = 0.008
    angle = (torch.arange(num + 1, dtype=torch.float64) / num + offset) / (1.0 + offset) * (math.pi / 2)
    curve = angle.cos() ** 2  # [num + 1]
    return (1.0 - curve[1:] / curve[:-1]).clamp(0.0, 0.999)


def spaced_timesteps(num_steps: int, spacing: Spacing, num_timesteps: int = 1000) -> list[int]:
    """Exactly `num_steps` distinct timesteps in falling order, for every count from 1 to `num_timesteps`.

    leading is LDM's rule with its offset of 1 (981, 961, ..., 1 for 50 of 1000), trailing starts at the last timestep
    (999, 979, ..., 19), linspace has both ends (999, 979, 958, ..., 0). Names as in arXiv 2305.08891, table 2. Integer
    arithmetic throughout: rules in floats return one step too many for some counts.

    Raises:
        UserError: a count outside 1..num_timesteps.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise UserError(f"num_steps: {num_steps} is not possible with this schedule; choose 1 to {num_timesteps}")
    if spacing == "trailing":
        return [_rounded(num_timesteps * (num_steps - i), num_steps) - 1 for i in range(num_steps)]
    if spacing == "linspace":
        last = max(num_steps - 1, 1)
        return [_rounded((num_timesteps - 1) * (last - i), last) for i in range(num_steps)]
    rising = [i * num_timesteps // num_steps for i in range(num_steps)]
    offset = min(1, num_timesteps - 1 - rising[-1])  # no room for LDM's offset when every timestep is used
    return [t + offset for t in reversed(rising)]


def _rounded(numerator: int, denominator: int) -> int:
    """The nearest integer of a fraction of non-negative integers, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def partial_timesteps(timesteps: Sequence[int], strength: float) -> list[int]:
    """The last part of the list, `strength` of its steps and at least one: where picture-to-picture sampling begins.

    Raises:
        UserError: a strength outside (0, 1].
    """
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength: {strength} is outside 0 (keep the picture) to 1 (ignore it)")
    return list(timesteps[-max(1, round(strength * len(timesteps))) :])
