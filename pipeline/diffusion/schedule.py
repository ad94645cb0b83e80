"""Noise schedules of discrete-time diffusion, and the lists of timesteps at which a sampler stops.

A schedule is two tables, built in float64: x_t = signal[t] * x0 + noise[t] * standard normal noise. Diffusion (Ho et
al., arXiv 2006.11239, eq. 4) has signal = sqrt(abar) and noise = sqrt(1 - abar), rectified flow (Liu et al., arXiv
2209.03003) 1 - s and s, EDM (Karras et al., arXiv 2206.00364) 1 and sigma. Used by the objective (training) and by
the samplers, so both see the same numbers.
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
EDM_RHO = 7.0
"""How sigmas crowd at the small end: arXiv 2206.00364, eq. 5."""


class ScheduleConfig(Config):
    """Which noise schedule; the defaults are those of Stable Diffusion. LDM's VQ models use .0015 to .0195."""

    kind: Literal["scaled_linear", "linear", "cosine", "flow", "edm"] = "scaled_linear"
    """scaled_linear: sqrt(beta) is linear (LDM: "linear"); linear: beta is (DDPM, DiT); cosine: arXiv 2102.09672; flow:
    straight lines; edm: sigmas of arXiv 2206.00364."""
    num_timesteps: int = Field(default=1000, gt=1)
    """Length of the table."""
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """beta at t = 0, of the two linear kinds."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """beta at the last t, of the two linear kinds."""
    sigma_min: float = Field(default=0.002, gt=0)
    """Smallest noise-to-signal ratio of edm."""
    sigma_max: float = Field(default=80.0, gt=0)
    """Largest noise-to-signal ratio of edm."""
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is pure noise (arXiv 2305.08891); needs v or x0 prediction. flow has it
    anyway."""
    shift: float = Field(default=1.0, gt=0)
    """Multiplies the noise-to-signal ratio of every timestep. For pictures k times larger than those that the schedule
    was made for it is k: arXiv 2301.11093, eq. 6, and for flow arXiv 2403.03206, eq. 23."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of one schedule and what follows from them."""

    signal: Tensor
    """Factor of the clean latent, float64 [num_timesteps] on the CPU, not rising."""
    noise: Tensor
    """Factor of the standard normal noise, float64 [num_timesteps] on the CPU; noise / signal rises."""

    @property
    def num_timesteps(self) -> int:
        """Length of the tables."""
        return len(self.signal)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio (signal / noise)^2, float64 [num_timesteps]; 0 at a zero-terminal end."""
        return (self.signal / self.noise) ** 2

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar, float64 [num_timesteps]: the share of the signal in the variance, for unit latents."""
        return self.snr / (1.0 + self.snr)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise factors, float32 on `like`'s device, shaped [B, 1, 1, ...], at timesteps `t` [B] on the CPU.

        Timesteps stay on the host: to look them up from a device would wait for all that it has to do before.
        """
        shape = (-1, *[1] * (like.ndim - 1))
        signal, noise = (table[t].float().view(shape).to(like.device, non_blocking=True) for table in self._tables)
        return signal, noise

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents [B, ...] at timesteps `t` [B] (CPU) with the given standard normal noise [B, ...]."""
        signal_scale, noise_scale = self.scales(t, clean)
        return signal_scale * clean + noise_scale * noise

    def spread(self, t: int) -> float:
        """Standard deviation of x_t for latents of unit variance: what sampling from nothing multiplies its noise
        by."""
        return math.hypot(float(self.signal[t]), float(self.noise[t]))

    @property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return self.signal, self.noise


def build_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule that `config` describes; rescale and shift come before anything else is derived.

    Raises:
        UserError: zero-terminal SNR where sigmas end by their own rule.
    """
    if config.kind == "edm" and config.zero_terminal_snr:
        raise UserError("schedule: zero_terminal_snr has no meaning for edm; raise sigma_max instead")
    if config.kind == "flow":
        s = torch.arange(1, config.num_timesteps + 1, dtype=torch.float64) / config.num_timesteps
        s = config.shift * s / (1.0 + (config.shift - 1.0) * s)
        return NoiseSchedule(1.0 - s, s)
    if config.kind == "edm":
        sigma = config.shift * _edm_sigmas(config)
        return NoiseSchedule(torch.ones_like(sigma), sigma)
    alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
    if config.zero_terminal_snr:
        alphas_cumprod = zero_terminal(alphas_cumprod)
    if config.shift != 1.0:
        alphas_cumprod = alphas_cumprod / (alphas_cumprod + config.shift**2 * (1.0 - alphas_cumprod))
    return NoiseSchedule(alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt())


def _edm_sigmas(config: ScheduleConfig) -> Tensor:
    """Rising sigmas, float64 [num_timesteps]: arXiv 2206.00364, eq. 5."""
    low, high = (sigma ** (1.0 / EDM_RHO) for sigma in (config.sigma_min, config.sigma_max))
    return torch.linspace(low, high, config.num_timesteps, dtype=torch.float64) ** EDM_RHO


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
