"""The schedule and the optimizer's groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pipeline.optim import OptimConfig, adam_state, build_optimizer, learning_rate_at

TOTAL = 10_000


def test_warmup_climbs_to_the_peak_and_stays() -> None:
    config = OptimConfig(learning_rate=1e-3, warmup_samples=100)
    assert [learning_rate_at(config, n, TOTAL) for n in (0, 50, 100, TOTAL)] == [0.0, 5e-4, 1e-3, 1e-3]


@given(st.integers(0, TOTAL), st.integers(0, TOTAL - 1))
def test_cosine_falls_from_peak_to_zero(samples_seen: int, warmup: int) -> None:
    config = OptimConfig(learning_rate=2.0, warmup_samples=warmup, decay="cosine")
    rate = learning_rate_at(config, samples_seen, TOTAL)
    assert 0.0 <= rate <= 2.0
    assert learning_rate_at(config, warmup, TOTAL) == 2.0
    assert learning_rate_at(config, TOTAL, TOTAL) == pytest.approx(0.0, abs=1e-12)
    if samples_seen >= warmup:
        later = learning_rate_at(config, samples_seen + 1, TOTAL)
        assert later <= rate
        middle = (samples_seen - warmup) / (TOTAL - warmup)
        assert rate == pytest.approx(2.0 * math.cos(math.pi * middle / 2) ** 2, abs=1e-9)


def test_only_weights_of_two_dimensions_decay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    net[2].bias.requires_grad_(False)
    decaying, others = build_optimizer(OptimConfig(weight_decay=0.3), net).param_groups
    assert decaying["weight_decay"] == 0.3 and others["weight_decay"] == 0.0
    assert {id(p) for p in decaying["params"]} == {id(net[0].weight), id(net[2].weight)}
    assert {id(p) for p in others["params"]} == {id(net[0].bias), id(net[1].weight), id(net[1].bias)}


def test_moments_allocated_early_change_nothing() -> None:
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [build_optimizer(OptimConfig(weight_decay=0.1), net) for net in nets]
    for parameter in nets[1].parameters():
        assert float(adam_state(optimizers[1], parameter)["step"]) == 0.0
    for _ in range(3):
        x = torch.randn(4, 3)
        for net, optimizer in zip(nets, optimizers, strict=True):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("bad", [{"betas": (0.9, 1.0)}, {"learning_rate": 0.0}, {"decay": "linear"}])
def test_wrong_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimConfig(**bad)
