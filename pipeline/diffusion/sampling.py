"""Samplers: pure functions from a noised latent to a clean one, all of one signature.

`sampler(denoiser, x, schedule, timesteps, fresh_noise, after_step)`. The denoiser maps (x_t, t) to its estimate of the
clean latent, so the samplers know neither network nor parametrisation nor guidance; `x` is x_t at `timesteps[0]`: pure
noise, or a partly noised picture. The step after the last timestep leads to the clean latent. x = signal * clean +
noise * n on every schedule, so one sampler serves diffusion, rectified flow and EDM. Coefficients are python floats
(float64). Used by `pipeline.generate` and the diffusion stage's preview.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor, full

from pipeline.config import Config
from pipeline.diffusion.schedule import NoiseSchedule, Spacing
from pipeline.diffusion.steps import Step, corrected, steps_of

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, ...], timesteps int64 [B] on the CPU) -> estimate of the clean latent [B, ...]."""
FreshNoise = Callable[[int], Tensor]
"""Index of a step -> standard normal noise [B, ...], for samplers that add some."""
AfterStep = Callable[[Tensor, int | None], Tensor]
"""(x, its timestep or None once clean) -> x to go on with: inpainting puts the known part back here."""
SamplerName = Literal["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "unipc"]


class SamplingConfig(Config):
    """How pictures are sampled."""

    sampler: SamplerName = "dpmpp_2m"
    """Which sampler; ddpm and euler_ancestral add fresh noise on the way, heun evaluates the network twice a step."""
    num_steps: int = Field(default=30, gt=0)
    """Steps, each one evaluation of the network (a doubled batch under guidance)."""
    spacing: Spacing = "trailing"
    """Which timesteps the steps stop at; zero-terminal SNR needs trailing."""
    guidance_scale: float = Field(default=5.0, ge=0)
    """1 is plain conditional sampling; larger follows the prompt more closely, with less variety."""
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """Share of the rescaling of arXiv 2305.08891 against over-exposure; 0.7 there."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Part of the schedule, from clean (0) to noise (1), under guidance; elsewhere sampling is plainly conditional,
    which keeps variety and saves evaluations (arXiv 2404.07724)."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the pictures in pixels; None is the autoencoder's resolution."""

    @model_validator(mode="after")
    def _interval_rises(self) -> Self:
        low, high = self.guidance_interval
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"guidance_interval is {low} to {high}; give two rising shares between 0 and 1")
        return self


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
    for step in steps_of(schedule, timesteps):
        clean = denoiser(x, full((len(x),), step.t))  # [B, ...]
        noise = (x - step.signal * clean) / step.noise  # [B, ...]
        sigma = eta * step.posterior_std
        x = step.signal_next * clean + math.sqrt(max(step.noise_next**2 - sigma**2, 0.0)) * noise  # [B, ...]
        if sigma > 0.0:
            x = x + sigma * fresh_noise(step.index)
        x = after_step(x, step.t_next)
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

    In the variables x / signal and sigma = noise / signal that step is DDIM's at eta = 0, and DDIM's form also holds
    where sigma is infinite, at a zero-terminal start.
    """
    return ddim(denoiser, x, schedule, timesteps, fresh_noise, after_step, eta=0.0)


def euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """Euler's method to a smaller sigma_down, then fresh noise of sigma_up, as in k-diffusion.

    sigma_up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 is the posterior's variance: DDIM's step at eta = 1.
    """
    return ddim(denoiser, x, schedule, timesteps, fresh_noise, after_step, eta=1.0)


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """Ancestral sampling from the posterior q(x_next | x_t, clean): Ho et al., arXiv 2006.11239, eq. 6 and 7."""
    for step in steps_of(schedule, timesteps):
        clean = denoiser(x, full((len(x),), step.t))  # [B, ...]
        ratio = step.signal / step.signal_next  # of the whole stride, which may skip timesteps
        clean_scale = step.signal_next * step.transition_variance / step.noise**2
        x = clean_scale * clean + ratio * (step.noise_next / step.noise) ** 2 * x  # [B, ...]
        if step.posterior_std > 0.0:
            x = x + step.posterior_std * fresh_noise(step.index)
        x = after_step(x, step.t_next)
    return x


def heun(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """Heun's second-order method: Karras et al., arXiv 2206.00364, algorithm 1; two evaluations a step, one in the
    last.

    Written as Euler's step plus half the change of the clean estimate, which needs no division by a vanishing signal;
    a step from a zero-terminal start stays Euler's, as its sigma is infinite.
    """
    for step in steps_of(schedule, timesteps):
        clean = denoiser(x, full((len(x),), step.t))  # [B, ...]
        x = step.towards(clean, x)  # [B, ...]
        if step.t_next is not None and step.signal > 0.0:
            later = denoiser(x, full((len(x),), step.t_next))  # [B, ...]
            growth = step.noise * step.signal_next / (step.signal * step.noise_next)  # sigma / sigma_next
            x = x + step.signal_next * (growth - 1.0) / 2.0 * (later - clean)  # [B, ...]
        x = after_step(x, step.t_next)
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
    for step in steps_of(schedule, timesteps):
        clean = denoiser(x, full((len(x),), step.t))  # [B, ...]
        extrapolated = clean
        if previous is not None and step.t_next is not None:
            weight = step.width / (2.0 * width_previous)  # 1 / (2r) of the paper
            extrapolated = (1.0 + weight) * clean - weight * previous  # [B, ...]
        x = after_step(step.towards(extrapolated, x), step.t_next)
        previous, width_previous = clean, step.width
    return x


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    fresh_noise: FreshNoise,
    after_step: AfterStep = unchanged,
) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 on the clean estimate: Zhao et al., arXiv 2302.04867, algorithms 1 and 2.

    Each evaluation first corrects the step that led to it, then predicts the next. Where the log-SNR is infinite, at
    either end, the orders are as in `dpmpp_2m`. What `after_step` puts back is seen by the evaluation, and put back
    again after the next prediction.
    """
    history: list[Tensor] = []  # clean estimates before the latest
    before = x  # where the latest step began
    last: Step | None = None
    widths: list[float] = []
    for step in steps_of(schedule, timesteps):
        clean = denoiser(x, full((len(x),), step.t))  # [B, ...]
        if last is not None:
            x = last.towards(corrected(history, clean, widths), before)  # [B, ...]
        history, before, last = [*history[-1:], clean], x, step
        widths = [*widths[-1:], step.width]
        guess = clean
        if len(history) == 2 and step.t_next is not None:
            weight = step.width / (2.0 * widths[0])
            guess = (1.0 + weight) * clean - weight * history[0]  # [B, ...]
        x = after_step(step.towards(guess, x), step.t_next)
    return x


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
}
