"""Guidance extrapolates, rescaling restores the conditional spread, and a scale of 1 costs one evaluation."""

import torch
from torch import Tensor

from pipeline.diffusion.guidance import guide, guided_denoiser
from pipeline.diffusion.objective import ObjectiveConfig, build_objective

GENERATOR = torch.Generator().manual_seed(0)
CONDITIONAL, UNCONDITIONAL = torch.randn(2, 3, 4, 8, 8, generator=GENERATOR)


def test_scale_zero_one_and_two() -> None:
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 0.0), UNCONDITIONAL)
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 1.0), CONDITIONAL)
    torch.testing.assert_close(guide(CONDITIONAL, UNCONDITIONAL, 2.0), 2 * CONDITIONAL - UNCONDITIONAL)


def test_full_rescale_has_the_spread_of_the_conditional_prediction() -> None:
    guided = guide(CONDITIONAL, UNCONDITIONAL, 7.5, rescale=1.0)
    torch.testing.assert_close(guided.std((1, 2, 3)), CONDITIONAL.std((1, 2, 3)))
    half = guide(CONDITIONAL, UNCONDITIONAL, 7.5, rescale=0.5)
    torch.testing.assert_close(half, (guided + guide(CONDITIONAL, UNCONDITIONAL, 7.5)) / 2)


def test_guided_denoiser_evaluates_both_prompts_at_once() -> None:
    objective = build_objective(ObjectiveConfig(prediction="x0"))
    sizes = []

    def network(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        sizes.append(len(x))
        return x + states.mean((1, 2)).view(-1, 1, 1, 1)

    states, null_states = torch.ones(3, 5, 6), torch.zeros(3, 5, 6)
    x, t = torch.zeros(3, 4, 8, 8), torch.full((3,), 10)
    plain = guided_denoiser(network, objective, states, null_states, scale=1.0)(x, t)
    guided = guided_denoiser(network, objective, states, null_states, scale=3.0)(x, t)
    assert sizes == [3, 6]
    torch.testing.assert_close(plain, torch.ones_like(x))
    torch.testing.assert_close(guided, 3 * torch.ones_like(x))


def test_outside_its_interval_guidance_costs_and_does_nothing() -> None:
    objective = build_objective(ObjectiveConfig(prediction="x0"))
    sizes = []

    def network(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        sizes.append(len(x))
        return x + states.mean((1, 2)).view(-1, 1, 1, 1)

    denoiser = guided_denoiser(
        network, objective, torch.ones(3, 5, 6), torch.zeros(3, 5, 6), scale=3.0, interval=(0.25, 0.75)
    )
    values = {t: float(denoiser(torch.zeros(3, 4, 8, 8), torch.full((3,), t)).mean()) for t in (100, 500, 900)}
    assert values == {100: 1.0, 500: 3.0, 900: 1.0} and sizes == [3, 6, 3]
