"""Samplers with the exact denoiser of a Gaussian reach its exact mean and variance; identities between samplers."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.sampling import (
    SAMPLERS,
    FreshNoise,
    Sampler,
    SamplerName,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    euler_ancestral,
    heun,
    unchanged,
    unipc,
)
from pipeline.diffusion.schedule import NoiseSchedule, ScheduleConfig, Spacing, build_schedule, spaced_timesteps

MEAN, STD = 0.7, 0.5
SD = build_schedule(ScheduleConfig())
ZERO_TERMINAL = build_schedule(ScheduleConfig(zero_terminal_snr=True))
FLOW = build_schedule(ScheduleConfig(kind="flow"))
EDM = build_schedule(ScheduleConfig(kind="edm"))


class GaussianDenoiser:
    """E[x0 | x_t] for x0 ~ N(MEAN, STD^2): what a perfect network would say."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        signal, noise = self.schedule.scales(t, x)
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        return (MEAN + gain * (x.double() - signal * MEAN)).to(x.dtype)


def marginal_scales(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """Mean and standard deviation of x_t."""
    signal, noise = float(schedule.signal[t]), float(schedule.noise[t])
    return signal * MEAN, math.hypot(signal * STD, noise)


def fresh(shape: torch.Size) -> FreshNoise:
    return lambda index: torch.randn(shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


def transport_error(sampler: Sampler, schedule: NoiseSchedule, num_steps: int, spacing: Spacing = "linspace") -> float:
    """Largest error of a deterministic sampler on the exact flow, which maps quantile to quantile of the marginals."""
    timesteps = spaced_timesteps(num_steps, spacing)
    mean, std = marginal_scales(schedule, timesteps[0])
    quantiles = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = mean + std * quantiles
    samples = sampler(GaussianDenoiser(schedule), x, schedule, timesteps, fresh(x.shape), unchanged)
    return float((samples - (MEAN + STD * quantiles)).abs().max())


SECOND_ORDER = [(heun, 4e-3), (dpmpp_2m, 4e-3), (unipc, 4e-3)]


@pytest.mark.parametrize("schedule", [SD, ZERO_TERMINAL, FLOW, EDM], ids=["sd", "zero-terminal", "flow", "edm"])
@pytest.mark.parametrize("sampler, bound", [(ddim, 2e-2), (euler, 2e-2), *SECOND_ORDER])
def test_deterministic_samplers_follow_the_exact_flow(sampler: Sampler, bound: float, schedule: NoiseSchedule) -> None:
    assert transport_error(sampler, schedule, 250) < bound


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m, unipc])
def test_second_order_beats_first_order(sampler: Sampler) -> None:
    assert transport_error(sampler, SD, 250) < 0.3 * transport_error(ddim, SD, 250)


def test_first_order_error_falls_in_proportion_to_the_step() -> None:
    ratio = transport_error(ddim, SD, 40) / transport_error(ddim, SD, 160)
    assert 3.0 < ratio < 5.5


@pytest.mark.parametrize("schedule", [SD, ZERO_TERMINAL, FLOW, EDM], ids=["sd", "zero-terminal", "flow", "edm"])
def test_ddpm_reaches_mean_and_variance(schedule: NoiseSchedule) -> None:
    """The update is linear with Gaussian noise, so its moments follow in closed form, without sampling error."""
    denoiser = GaussianDenoiser(schedule)
    timesteps = spaced_timesteps(1000, "trailing")
    mean, std = marginal_scales(schedule, timesteps[0])
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    variance = std**2
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        step_noise = []
        table = [t] if t_next is None else [t, t_next]
        moved = one_step(denoiser, points, schedule, table, step_noise)
        slope, offset = float(moved[1] - moved[0]), float(moved[0])
        mean = slope * mean + offset
        variance = slope**2 * variance + (step_noise[0] ** 2 if step_noise else 0.0)
    assert mean == pytest.approx(MEAN, abs=2e-3)
    assert math.sqrt(variance) == pytest.approx(STD, abs=1e-2)  # the posterior variance is exact for a point only


def one_step(
    denoiser: GaussianDenoiser, points: Tensor, schedule: NoiseSchedule, table: list[int], scales: list[float]
) -> Tensor:
    """One step of ddpm on `points` without its noise, whose scale is appended to `scales`."""
    states: list[Tensor] = []

    def remember(x: Tensor, t: int | None) -> Tensor:
        states.append(x)
        return x

    ddpm(denoiser, points, schedule, table, lambda index: torch.zeros_like(points), remember)
    plain = states[0]
    states.clear()
    ddpm(denoiser, points, schedule, table, lambda index: torch.ones_like(points), remember)
    if float((states[0] - plain)[0]) != 0.0:
        scales.append(float((states[0] - plain)[0]))
    return plain


def test_ddpm_is_ddim_with_eta_one() -> None:
    timesteps = spaced_timesteps(30, "trailing")
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = ddpm(GaussianDenoiser(SD), x, SD, timesteps, fresh(x.shape))
    b = ddim(GaussianDenoiser(SD), x, SD, timesteps, fresh(x.shape), eta=1.0)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(euler_ancestral(GaussianDenoiser(SD), x, SD, timesteps, fresh(x.shape)), b)


def test_euler_is_eulers_method_in_sigma() -> None:
    timesteps = spaced_timesteps(17, "linspace")
    denoiser = GaussianDenoiser(SD)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [float(SD.snr[t].rsqrt()) for t in timesteps] + [0.0]
    y = x / SD.alphas_cumprod[timesteps[0]].sqrt()
    for t, sigma, sigma_next in zip(timesteps, sigmas, sigmas[1:], strict=False):
        clean = denoiser(y * SD.alphas_cumprod[t].sqrt(), torch.full((3,), t))
        y = y + (sigma_next - sigma) * (y - clean) / sigma
    torch.testing.assert_close(euler(denoiser, x, SD, timesteps, fresh(x.shape), unchanged), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_all_samplers_finish_clean_at_awkward_counts(name: SamplerName, spacing: Spacing) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for schedule in (SD, ZERO_TERMINAL, FLOW, EDM):
        for num_steps in (1, 2, 3, 7, 37):
            visited: list[int | None] = []
            timesteps = spaced_timesteps(num_steps, spacing)

            def remember(state: Tensor, t: int | None, visited: list[int | None] = visited) -> Tensor:
                visited.append(t)
                return state

            out = SAMPLERS[name](GaussianDenoiser(schedule), x, schedule, timesteps, fresh(x.shape), remember)
            assert out.isfinite().all()
            assert visited == [*timesteps[1:], None]


def test_one_step_returns_the_denoisers_word() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sampler in SAMPLERS.values():
        out = sampler(GaussianDenoiser(SD), x, SD, [999], fresh(x.shape), unchanged)
        torch.testing.assert_close(out, GaussianDenoiser(SD)(x, torch.tensor([999, 999])))
