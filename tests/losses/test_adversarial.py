"""Hinge losses, and the adaptive weight against autograd on the weight itself."""

import pytest
import torch
from torch import nn

from pipeline.losses.adversarial import GameKind, adaptive_weight, discriminator_loss, generator_loss


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert generator_loss(fake).item() == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_logits_are_pulled_the_way_of_each_side(kind: GameKind) -> None:
    """Everywhere the slope has its sign: arguments changed about, or squares, would turn it somewhere."""
    for logit in (-3.0, -0.5, 0.5, 3.0):
        fake, real, judged = (torch.tensor([logit], requires_grad=True) for _ in range(3))
        generator_loss(fake, kind).backward()
        discriminator_loss(real, judged, kind).backward()
        slopes = [float(x.grad) for x in (fake, real, judged) if x.grad is not None]
        assert slopes[0] < 0 and slopes[1] <= 0 <= slopes[2], logit
        assert slopes[1] < 0 or logit > 1 and kind == "hinge"
        assert slopes[2] > 0 or logit < -1 and kind == "hinge"


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
