"""The oracle: latents from a Gaussian mixture, whose best denoiser is known at every noise level.

A small network is trained on each objective for seconds; its loss may exceed the smallest possible one by 2 % at most.
Sampling with the exact denoiser gives the mixture's moments back.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.diffusion.objective import Objective, ObjectiveConfig, build_objective
from pipeline.diffusion.sampling import SAMPLERS, SamplerName
from pipeline.diffusion.schedule import NoiseSchedule, ScheduleConfig, spaced_timesteps

CENTRES = torch.tensor([[-1.2, -0.6], [1.2, -0.6], [0.0, 1.2]])
SPREAD = 0.35
OBJECTIVES = {
    "eps": ObjectiveConfig(),
    "v": ObjectiveConfig(prediction="v", schedule=ScheduleConfig(zero_terminal_snr=True)),
    "x0": ObjectiveConfig(prediction="x0"),
    "edm": ObjectiveConfig(
        prediction="edm", sigma_data=1.0, log_sigma_normal=(-1.2, 1.2), schedule=ScheduleConfig(kind="edm")
    ),
    "flow": ObjectiveConfig(prediction="flow", schedule=ScheduleConfig(kind="flow")),
}


def draw(num: int, generator: torch.Generator) -> Tensor:
    """[num, 2] from the mixture."""
    centres = CENTRES[torch.randint(3, (num,), generator=generator)]
    return centres + SPREAD * torch.randn(num, 2, generator=generator)


def best(schedule: NoiseSchedule, x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] of the mixture, [B, 2]."""
    signal, noise = (table[t].to(x.dtype)[:, None] for table in (schedule.signal, schedule.noise))
    variance = signal**2 * SPREAD**2 + noise**2  # of each component of x_t, [B, 1]
    away = x[:, None] - signal[:, None] * CENTRES.to(x.dtype)  # [B, 3, 2]
    share = torch.softmax(-away.square().sum(2) / (2 * variance), dim=1)[..., None]  # [B, 3, 1]
    means = CENTRES.to(x.dtype) + (signal * SPREAD**2 / variance)[:, None] * away  # [B, 3, 2]
    return (share * means).sum(1)


class Network(nn.Module):
    """Two hidden layers over the point and the place in the schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + 8, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        waves = log_sigma[:, None] * torch.tensor([0.25, 0.5, 1.0, 2.0])
        return self.layers(torch.cat([x, waves.sin(), waves.cos()], dim=1))


def train(objective: Objective, num_steps: int = 1500) -> Network:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        output, clean, noise, t = predict(objective, network, 512, generator)
        optimizer.zero_grad()
        objective.loss(output, clean, noise, t).mean().backward()
        optimizer.step()
    return network


def predict(
    objective: Objective, network: Network, num: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, clean, noise, t) on fresh points."""
    clean, noise = draw(num, generator), torch.randn(num, 2, generator=generator)
    t = objective.timesteps(torch.rand(num, generator=generator, dtype=torch.float64).numpy())
    noised = objective.schedule.add_noise(clean, noise, t)
    log_sigma = (-0.5 * objective.schedule.snr[t].log()).clamp(-6, 6).float()
    return network(objective.network_input(noised, t), log_sigma), clean, noise, t


ALL = [pytest.param(name, marks=[] if name == "v" else pytest.mark.slow) for name in OBJECTIVES]


@pytest.mark.parametrize("name", ALL)
def test_a_short_training_comes_within_two_percent_of_the_best_loss(name: str) -> None:
    """The loss splits into what no network can know and the distance from the best answer; the latter is the excess."""
    objective = build_objective(OBJECTIVES[name])
    network = train(objective)
    with torch.no_grad():
        output, clean, noise, t = predict(objective, network, 100_000, torch.Generator().manual_seed(2))
        noised = objective.schedule.add_noise(clean, noise, t)
        gain = objective._gain()[t].float()[:, None]
        answer = (objective.clean(output, noised, t) - best(objective.schedule, noised, t)) / gain
        excess = float(answer.square().mean())
        smallest = float(objective.squared_error(output, clean, noise, t).mean()) - excess
    assert smallest > 0.05, "nothing left to be uncertain about"
    assert excess < 0.02 * smallest, f"{excess / smallest:.2%}"


@pytest.mark.parametrize("kind", ["scaled_linear", "flow", pytest.param("edm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_gives_the_moments_of_the_mixture(name: SamplerName, kind: str) -> None:
    config = ScheduleConfig(kind=kind, zero_terminal_snr=kind == "scaled_linear")
    prediction = {"flow": "flow", "edm": "edm"}.get(kind, "v")
    schedule = build_objective(ObjectiveConfig(prediction=prediction, schedule=config)).schedule
    wide = kind == "edm"  # sigmas from 80 down: more of a way, and more steps
    timesteps = spaced_timesteps(250 if wide else 100, "trailing")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20_000 if wide else 6_000, 2, generator=generator, dtype=torch.float64) * schedule.spread(
        timesteps[0]
    )
    out = SAMPLERS[name](
        lambda x, t: best(schedule, x, t),
        x,
        schedule,
        timesteps,
        lambda index: torch.randn(x.shape, generator=generator, dtype=torch.float64),
        lambda x, t: x,
    )
    covariance = CENTRES.T.double() @ CENTRES.double() / 3 + SPREAD**2 * torch.eye(2, dtype=torch.float64)
    assert out.mean(0).abs().max() < 0.03
    assert (out.T.cov() - covariance).abs().max() < 0.06
    nearest = torch.cdist(out, CENTRES.double()).argmin(1).bincount() / len(out)
    assert (nearest - 1 / 3).abs().max() < 0.015
