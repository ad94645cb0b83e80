"""Hinge losses, and the adaptive weight against autograd on the weight itself."""

import pytest
import torch
from torch import nn

from pipeline.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert generator_loss(fake).item() == pytest.approx(0.75)


def test_a_higher_logit_of_the_reconstruction_lowers_the_generator_s_loss() -> None:
    assert generator_loss(torch.tensor([1.0])) < generator_loss(torch.tensor([0.0]))


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_adaptive_weight_is_the_ratio_of_the_weight_s_gradients(stride: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, stride=stride, padding=padding)
    hidden = torch.randn(2, 5, 9, 9)
    picture = conv(hidden)
    target, critic = torch.randn_like(picture), torch.randn_like(picture)
    losses = ((picture - target).abs().mean(), (picture * critic).mean())
    norms = [torch.autograd.grad(loss, conv.weight, retain_graph=True)[0].norm() for loss in losses]
    gradients = [torch.autograd.grad(loss, picture, retain_graph=True)[0] for loss in losses]
    weight = adaptive_weight(hidden, conv, *gradients, reduce=lambda x: x)
    assert weight.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item(), rel=1e-5)


def test_adaptive_weight_is_bounded_where_the_game_has_no_gradient() -> None:
    conv, hidden = nn.Conv2d(2, 3, 3, padding=1), torch.ones(1, 2, 4, 4)
    gradient = torch.full((1, 3, 4, 4), 1e6)
    assert adaptive_weight(hidden, conv, gradient, torch.zeros_like(gradient), reduce=lambda x: x).item() == 1e4
