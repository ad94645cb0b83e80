"""Noise schedules against their published tables; timestep lists for every count."""

import pytest
import torch

from pipeline.config import UserError
from pipeline.diffusion.schedule import (
    ScheduleConfig,
    Spacing,
    build_schedule,
    partial_timesteps,
    spaced_timesteps,
)

SD = ScheduleConfig()
LDM_VQ = ScheduleConfig(beta_start=0.0015, beta_end=0.0195)
INPAINT = ScheduleConfig(beta_start=0.0015, beta_end=0.0205)
SUPER_RESOLUTION = ScheduleConfig(beta_start=0.0015, beta_end=0.0155)
DIT = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)

# abar at t, computed from the published betas in float64 and printed to the digits given
GOLDEN = [
    (
        SD,
        {
            0: "0.99915000",
            100: "0.89422348",
            250: "0.67379263",
            500: "0.27633268",
            750: "0.05616985",
            900: "0.01415114",
            999: "0.00466010",
        },
    ),
    (
        LDM_VQ,
        {
            0: "0.99850000",
            100: "0.82311704",
            250: "0.50842433",
            500: "0.11492200",
            750: "0.00833414",
            900: "0.00087253",
            999: "0.00014230",
        },
    ),
    (INPAINT, {0: "0.99850000", 500: "0.10767675", 999: "0.00009691"}),
    (SUPER_RESOLUTION, {0: "0.99850000", 500: "0.15007005", 999: "0.00066867"}),
    (DIT, {0: "0.99990000", 500: "0.07779666", 999: "0.00004036"}),
]


@pytest.mark.parametrize("config, table", GOLDEN)
def test_alphas_cumprod_of_published_schedules(config: ScheduleConfig, table: dict[int, str]) -> None:
    abar = build_schedule(config).alphas_cumprod
    assert abar.dtype == torch.float64
    assert {t: f"{abar[t]:.8f}" for t in table} == table


@pytest.mark.parametrize(
    "config, smallest, largest",
    [
        (SD, 0.029167, 14.6146),
        (LDM_VQ, 0.038759, 83.8225),
        (INPAINT, 0.038759, 101.58),
        (SUPER_RESOLUTION, 0.038759, 38.6590),
        (DIT, 0.010001, 157.41),
    ],
)
def test_sigma_range(config: ScheduleConfig, smallest: float, largest: float) -> None:
    sigma = build_schedule(config).snr.rsqrt()
    assert sigma[0].item() == pytest.approx(smallest, rel=1e-4)
    assert sigma[-1].item() == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize(
    "config, abar_500, abar_998", [(SD, "0.24101878", "1.96788806e-07"), (LDM_VQ, "0.10957699", "1.42717e-08")]
)
def test_zero_terminal_rescale(config: ScheduleConfig, abar_500: str, abar_998: str) -> None:
    abar = build_schedule(config.model_copy(update={"zero_terminal_snr": True})).alphas_cumprod
    assert abar[999] == 0.0
    assert abar[0].item() == pytest.approx(build_schedule(config).alphas_cumprod[0].item(), rel=1e-14)
    assert f"{abar[500]:.8f}" == abar_500
    assert f"{abar[998]:.{len(abar_998) - 6}e}" == abar_998


def test_cosine_follows_its_formula_and_clips() -> None:
    abar = build_schedule(ScheduleConfig(kind="cosine")).alphas_cumprod
    curve = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    torch.testing.assert_close(abar[:990], (curve[1:] / curve[0])[:990], rtol=1e-10, atol=0)
    assert (abar[999] / abar[998]).item() == pytest.approx(0.001, rel=1e-9)


def test_add_noise_has_the_variance_of_the_table() -> None:
    schedule = build_schedule(SD)
    t = torch.tensor([0, 500, 999])
    zeros, ones = torch.zeros(3, 4, 2, 2), torch.ones(3, 4, 2, 2)
    signal, noise = schedule.add_noise(ones, zeros, t), schedule.add_noise(zeros, ones, t)
    torch.testing.assert_close(signal**2 + noise**2, ones)
    torch.testing.assert_close(signal[:, 0, 0, 0] ** 2, schedule.alphas_cumprod[t].float())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_step_count_gives_that_many_falling_timesteps(spacing: Spacing) -> None:
    for num_steps in range(1, 1001):
        timesteps = spaced_timesteps(num_steps, spacing)
        assert len(timesteps) == num_steps
        assert timesteps[-1] >= 0 and timesteps[0] <= 999
        assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False))
        if spacing != "leading":
            assert timesteps[0] == 999


def test_published_timestep_lists() -> None:
    leading, trailing, linspace = (spaced_timesteps(50, spacing) for spacing in ("leading", "trailing", "linspace"))
    assert leading == list(range(981, 0, -20))
    assert trailing == list(range(999, 18, -20))
    assert linspace[:5] == [999, 979, 958, 938, 917] and linspace[-3:] == [41, 20, 0]


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps: int) -> None:
    with pytest.raises(UserError, match="num_steps"):
        spaced_timesteps(num_steps, "trailing")


def test_partial_timesteps_keeps_the_end() -> None:
    timesteps = spaced_timesteps(20, "trailing")
    assert partial_timesteps(timesteps, 1.0) == timesteps
    assert partial_timesteps(timesteps, 0.25) == timesteps[-5:]
    assert partial_timesteps(timesteps, 0.001) == timesteps[-1:]
    for strength in (0.0, 1.5):
        with pytest.raises(UserError, match="strength"):
            partial_timesteps(timesteps, strength)


def test_flow_is_a_straight_line_and_edm_reaches_its_sigmas() -> None:
    flow, edm = build_schedule(ScheduleConfig(kind="flow")), build_schedule(ScheduleConfig(kind="edm"))
    torch.testing.assert_close(flow.signal + flow.noise, torch.ones(1000, dtype=torch.float64))
    assert flow.noise[499] == 0.5 and flow.noise[999] == 1.0 and flow.signal[999] == 0.0
    assert (edm.signal == 1.0).all() and bool((edm.noise.diff() > 0).all())
    assert [edm.noise[0].item(), edm.noise[999].item()] == pytest.approx([0.002, 80.0])


@pytest.mark.parametrize("kind", ["scaled_linear", "cosine", "flow", "edm"])
def test_a_shift_multiplies_the_noise_to_signal_ratio_everywhere(kind: str) -> None:
    plain, shifted = (build_schedule(ScheduleConfig(kind=kind, shift=shift)) for shift in (1.0, 2.0))
    torch.testing.assert_close(shifted.noise / shifted.signal, 2.0 * plain.noise / plain.signal, rtol=1e-9, atol=0)
    total = plain.signal + plain.noise if kind == "flow" else plain.signal**2 + plain.noise**2
    again = shifted.signal + shifted.noise if kind == "flow" else shifted.signal**2 + shifted.noise**2
    if kind != "edm":
        torch.testing.assert_close(again, total, rtol=1e-12, atol=0)
