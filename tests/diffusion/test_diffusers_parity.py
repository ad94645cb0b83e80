"""Our schedules, spacings and samplers beside diffusers' schedulers; where diffusers errs, the exception has a name.

Named exceptions (diffusers 0.42):
- leading: their stride is T // N, so counts that do not divide T stop short, and N = T indexes past the table (#10003);
- trailing: a float range, which for some counts has one step too many;
- linspace: one step begins at t = 0, where there is nothing to remove; ours begins at the last t;
- DDIM: the step ends at t - T // N, which is no step of the list unless N divides T (#12633);
- ties are rounded to even, ours upwards.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.diffusion.sampling import SAMPLERS, SamplerName
from pipeline.diffusion.schedule import ScheduleConfig, Spacing, build_schedule, spaced_timesteps
from pipeline.torchvision_shim import declare_missing_operators

declare_missing_operators()
import diffusers  # noqa: E402

T = 1000
SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = build_schedule(ScheduleConfig())
MEAN, STD = 0.7, 0.5
COUNTS = [1, 2, 3, 5, 7, 10, 20, 37, 50]


def eps(x: Tensor, t: int) -> Tensor:
    """What a perfect network says of data ~ N(MEAN, STD^2)."""
    signal, noise = float(SCHEDULE.signal[t]), float(SCHEDULE.noise[t])
    gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
    return (x - signal * (MEAN + gain * (x - signal * MEAN))) / noise


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    signal, noise = float(SCHEDULE.signal[t[0]]), float(SCHEDULE.noise[t[0]])
    return (x - noise * eps(x, int(t[0]))) / signal


def start() -> Tensor:
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noises() -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda index: torch.randn(64, 3, generator=generator, dtype=torch.float64)


def ours(name: SamplerName, timesteps: list[int]) -> Tensor:
    return SAMPLERS[name](denoiser, start(), SCHEDULE, timesteps, noises(), lambda x, t: x)


def theirs(scheduler: Any, timesteps: list[int], in_sigma: bool) -> Tensor:
    """Their loop over our list; `in_sigma` schedulers work on x / sqrt(abar)."""
    x = start()
    if in_sigma:
        x = x / SCHEDULE.signal[timesteps[0]]
    generator = torch.Generator().manual_seed(7)
    takes = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for t in scheduler.timesteps:
        seen = x * SCHEDULE.signal[int(t)] if in_sigma else x
        x = scheduler.step(eps(seen, int(t)), t, x, **takes).prev_sample.double()
    return x


def with_list(name: str, timesteps: list[int], **settings: Any) -> Any:
    """Their scheduler on our list of timesteps, through its own door or, where it has none, by its tables."""
    scheduler = getattr(diffusers, name)(**SETTINGS, **settings)
    if "timesteps" in scheduler.set_timesteps.__code__.co_varnames[: scheduler.set_timesteps.__code__.co_argcount]:
        scheduler.set_timesteps(timesteps=timesteps)
        return scheduler
    scheduler.set_timesteps(len(timesteps))
    scheduler.timesteps = torch.tensor(timesteps, dtype=scheduler.timesteps.dtype)
    sigmas = (SCHEDULE.noise / SCHEDULE.signal)[timesteps]
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)]).float()
    return scheduler


PAIRS: dict[SamplerName, tuple[str, dict[str, Any], bool]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, False),
    "euler": ("EulerDiscreteScheduler", {}, True),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, True),
    "heun": ("HeunDiscreteScheduler", {}, True),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}, False),
    "unipc": ("UniPCMultistepScheduler", {"final_sigmas_type": "zero"}, False),
}


def difference(name: SamplerName, num_steps: int, spacing: Spacing) -> float:
    other, settings, in_sigma = PAIRS[name]
    timesteps = spaced_timesteps(num_steps, spacing)
    return float(
        (ours(name, timesteps) - theirs(with_list(other, timesteps, **settings), timesteps, in_sigma)).abs().max()
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", PAIRS)
def test_samplers_end_where_those_of_diffusers_do(name: SamplerName, spacing: Spacing) -> None:
    worst = {num_steps: difference(name, num_steps, spacing) for num_steps in COUNTS}
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", PAIRS)
def test_at_every_step_count(name: SamplerName) -> None:
    worst = {num_steps: difference(name, num_steps, "trailing") for num_steps in range(1, T + 1)}
    assert max(worst.values()) < TOLERANCE, max(worst, key=lambda n: worst[n])


TOLERANCE = 1e-4
"""Of a whole run, on data of spread 0.5: theirs keeps sigmas and samples in float32."""


def test_ddim_where_its_stride_fits() -> None:
    for num_steps in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50):
        scheduler = diffusers.DDIMScheduler(**SETTINGS, clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps)
        timesteps = spaced_timesteps(num_steps, "trailing")
        assert scheduler.timesteps.tolist() == timesteps
        assert (ours("ddim", timesteps) - theirs(scheduler, timesteps, False)).abs().max() < TOLERANCE


def test_tables_noising_and_velocity() -> None:
    scheduler = diffusers.DDPMScheduler(**SETTINGS)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), SCHEDULE.alphas_cumprod, rtol=1e-5, atol=0)
    rescaled = diffusers.DDIMScheduler(**SETTINGS, rescale_betas_zero_snr=True)
    zero = build_schedule(ScheduleConfig(zero_terminal_snr=True))
    torch.testing.assert_close(rescaled.alphas_cumprod.double(), zero.alphas_cumprod, rtol=1e-3, atol=1e-6)
    clean, noise = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 250, 500, 999])
    torch.testing.assert_close(scheduler.add_noise(clean, noise, t), SCHEDULE.add_noise(clean, noise, t))
    signal, sigma = SCHEDULE.scales(t, clean)
    torch.testing.assert_close(scheduler.get_velocity(clean, noise, t), signal * noise - sigma * clean)


def their_list(num_steps: int, spacing: str) -> list[int]:
    scheduler = diffusers.DDIMScheduler(
        **SETTINGS, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0
    )
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.tolist()


def tie(value: Fraction) -> bool:
    return value.denominator == 2


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_lists_at_every_count(spacing: Spacing) -> None:
    too_long = []
    for num_steps in range(1 if spacing == "trailing" else 2, T + 1):
        own, other = spaced_timesteps(num_steps, spacing), their_list(num_steps, spacing)
        if len(other) != num_steps:
            too_long.append(num_steps)
            continue
        for i in np.flatnonzero(np.array(own) != np.array(other)).tolist():
            exact = Fraction(T * (num_steps - i), num_steps) - 1
            if spacing == "linspace":
                exact = Fraction((T - 1) * (num_steps - 1 - i), num_steps - 1)
            assert tie(exact) and own[i] == other[i] + 1, (num_steps, i, own[i], other[i])
    assert spacing == "trailing" or not too_long
    assert len(too_long) < 100  # those of the float range; every other count is equal


def test_leading_lists_at_every_count() -> None:
    for num_steps in range(1, T + 1):
        own, other = spaced_timesteps(num_steps, "leading"), their_list(num_steps, "leading")
        if num_steps == T:
            assert max(other) == T  # past the end of their own table
        elif T % num_steps == 0:
            assert own == other
        else:
            assert max(other) <= max(own) <= T - 1
