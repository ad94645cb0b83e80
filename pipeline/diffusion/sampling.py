"""Samplers: pure functions from a noised latent to a clean one, all of one signature.

`sampler(denoiser, x, schedule, timesteps, fresh_noise, after_step)`. The denoiser maps (x_t, t) to its estimate of the
clean latent, so the samplers know neither network nor parametrisation nor guidance; `x` is x_t at `timesteps[0]`: pure
noise, or a partly noised picture. The step after the last timestep leads to abar = 1, the clean latent. Coefficients
are python floats (float64). Used by `pipeline.generate` and the diffusion stage's preview.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor, full

from pipeline.config import Config
from pipeline.diffusion.schedule import NoiseSchedule, Spacing

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], timesteps int64 [B]) -> estimate of the clean latent [B, ...]."""
FreshNoise = Callable[[int], Tensor]
"""Index of a step -> standard normal noise [B, ...], for samplers that add some."""
AfterStep = Callable[[Tensor, int | None], Tensor]
"""(x, its timestep or None once clean) -> x to go on with: inpainting puts the known part back here."""
SamplerName = Literal["ddpm", "ddim", "euler", "dpmpp_2m"]


class SamplingConfig(Config):
    """How pictures are sampled."""

    sampler: SamplerName = "dpmpp_2m"
    """Which sampler; ddpm alone adds fresh noise on the way."""
    num_steps: int = Field(default=30, gt=0)
    """Steps, each one evaluation of the network (a doubled batch under guidance)."""
    spacing: Spacing = "trailing"
    """Which timesteps the steps stop at; zero-terminal SNR needs trailing."""
    guidance_scale: float = Field(default=5.0, ge=0)
    """1 is plain conditional sampling; larger follows the prompt more closely, with less variety."""
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """Share of the rescaling of arXiv 2305.08891 against over-exposure; 0.7 there."""


class Sampler(Protocol):
    """The signature that all samplers share."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        schedule: NoiseSchedule,
        timesteps: Sequence[int],
        fresh_noise: FreshNoise,
        after_step: AfterStep,
    ) -> Tensor:
        """x_t [B, ...] at `timesteps[0]` -> clean latent [B, ...]."""
        ...


def unchanged(x: Tensor, t: int | None) -> Tensor:
    """The `after_step` of plain sampling."""
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
    eta: float = 0.0,
) -> Tensor:
    """Song et al., arXiv 2010.02502, eq. 12 and 16; deterministic at eta = 0."""
    for index, t, t_next, (abar, abar_next) in _steps(schedule, timesteps):
        clean = denoiser(x, full((len(x),), t, device=x.device))  # [B, ...]
        noise = (x - math.sqrt(abar) * clean) / math.sqrt(1.0 - abar)  # [B, ...]
        sigma = eta * math.sqrt((1.0 - abar_next) / (1.0 - abar) * (1.0 - abar / abar_next))
        x = math.sqrt(abar_next) * clean + math.sqrt(1.0 - abar_next - sigma**2) * noise  # [B, ...]
        if sigma > 0.0:
            x = x + sigma * fresh_noise(index)
        x = after_step(x, t_next)
    return x


def euler(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """Euler's method on dx/dsigma = (x - clean) / sigma (Karras et al., arXiv 2206.00364, algorithm 1 without Heun).

    In the variables x / sqrt(abar) and sigma = sqrt((1 - abar) / abar) that step is DDIM's at eta = 0, and DDIM's form
    also holds where sigma is infinite, at a zero-terminal start.
    """
    return ddim(denoiser, x, schedule, timesteps, fresh_noise, after_step, eta=0.0)


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """Ancestral sampling from the posterior q(x_next | x_t, clean): Ho et al., arXiv 2006.11239, eq. 6 and 7."""
    for index, t, t_next, (abar, abar_next) in _steps(schedule, timesteps):
        clean = denoiser(x, full((len(x),), t, device=x.device))  # [B, ...]
        alpha = abar / abar_next  # of the whole stride, which may skip timesteps
        clean_scale = math.sqrt(abar_next) * (1.0 - alpha) / (1.0 - abar)
        x_scale = math.sqrt(alpha) * (1.0 - abar_next) / (1.0 - abar)
        variance = (1.0 - alpha) * (1.0 - abar_next) / (1.0 - abar)
        x = clean_scale * clean + x_scale * x  # [B, ...]
        if variance > 0.0:
            x = x + math.sqrt(variance) * fresh_noise(index)
        x = after_step(x, t_next)
    return x


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """DPM-Solver++(2M): Lu et al., arXiv 2211.01095, algorithm 2; second order, one evaluation a step.

    The first and the last step are of first order: the first has no history, and the last ends at infinite log-SNR.
    So is the one after a zero-terminal start, whose log-SNR is minus infinity: the extrapolation's weight is then 0.
    """
    previous: Tensor | None = None
    width_previous = math.inf
    for _, t, t_next, (abar, abar_next) in _steps(schedule, timesteps):
        clean = denoiser(x, full((len(x),), t, device=x.device))  # [B, ...]
        width = _half_log_snr(abar_next) - _half_log_snr(abar)  # h of the paper
        extrapolated = clean
        if previous is not None and t_next is not None:
            weight = width / (2.0 * width_previous)  # 1 / (2r) of the paper
            extrapolated = (1.0 + weight) * clean - weight * previous  # [B, ...]
        decay = math.sqrt((1.0 - abar_next) / (1.0 - abar))
        x = decay * x - math.sqrt(abar_next) * math.expm1(-width) * extrapolated  # [B, ...]
        x = after_step(x, t_next)
        previous, width_previous = clean, width
    return x


SAMPLERS: dict[SamplerName, Sampler] = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "dpmpp_2m": dpmpp_2m}


def _steps(
    schedule: NoiseSchedule, timesteps: Sequence[int]
) -> Iterator[tuple[int, int, int | None, tuple[float, float]]]:
    """(index, t, next t or None, (abar at t, abar at next t)) of each step; the last one leads to abar = 1."""
    assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False)), "timesteps must fall"
    for index, t in enumerate(timesteps):
        t_next = timesteps[index + 1] if index + 1 < len(timesteps) else None
        abar_next = 1.0 if t_next is None else float(schedule.alphas_cumprod[t_next])
        yield index, t, t_next, (float(schedule.alphas_cumprod[t]), abar_next)


def _half_log_snr(abar: float) -> float:
    """lambda = log(sqrt(abar) / sqrt(1 - abar)), infinite at the ends."""
    if abar in (0.0, 1.0):
        return math.inf if abar else -math.inf
    return 0.5 * (math.log(abar) - math.log1p(-abar))
