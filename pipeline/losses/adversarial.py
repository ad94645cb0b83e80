"""The adversarial game of VQGAN: its losses, their regularisers, and the weight that balances it against the picture.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021, equation 7. Called by the stage.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

MAX_ADAPTIVE_WEIGHT = 1e4
EPSILON = 1e-4
LECAM_DECAY = 0.999

GameKind = Literal["hinge", "non_saturating"]


def generator_loss(fake_logits: Tensor, kind: GameKind = "hinge") -> Tensor:
    """Falls when the discriminator takes reconstructions for real: -mean D(x'), or mean softplus(-D(x'))."""
    fake = fake_logits.float()
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: GameKind = "hinge") -> Tensor:
    """Half of mean relu(1 - D(x)) + mean relu(1 + D(x')), or of mean softplus(-D(x)) + mean softplus(D(x'))."""
    real, fake = real_logits.float(), fake_logits.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, anchors: Tensor) -> Tensor:
    """mean relu(D(x) - a_fake)^2 + mean relu(a_real - D(x'))^2 (Tseng et al., "Regularizing GANs", 2021, equation 4).

    Args:
        anchors: moving averages [2] of the logits of pictures and of reconstructions, over all ranks.
    """
    above = F.relu(real_logits.float() - anchors[1]).square().mean()
    below = F.relu(anchors[0] - fake_logits.float()).square().mean()
    return above + below


def gradient_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1: half the mean of |d sum D(x) / dx|^2 of each picture (Mescheder et al., 2018, equation 9), to train through.

    Args:
        images: real pictures [B, 3, H, W].
    """
    leaf = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(leaf).float().sum(), leaf, create_graph=True)
    return 0.5 * slope.square().sum(dim=(1, 2, 3)).mean()


@torch.no_grad()
def adaptive_weight(
    last_hidden: Tensor,
    last_conv: nn.Conv2d,
    by_reconstruction: Tensor,
    by_game: Tensor,
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """lambda = |d L_rec / d W| / (|d L_gan / d W| + 1e-4), at most 1e4, for the weight W of the last convolution.

    The weight's gradients are rebuilt from the gradients at the picture, so no second backward runs through the
    decoder and W itself, which ZeRO 3 may have partitioned, is not read.

    Args:
        last_hidden: input of the last convolution [B, C, H, W].
        last_conv: the last convolution; only its geometry is used.
        by_reconstruction: d L_rec / d picture [B, 3, H, W].
        by_game: d L_gan / d picture [B, 3, H, W].
        reduce: mean over ranks; it acts before the norms, so that lambda is one number for the global batch.

    Returns:
        Scalar.
    """
    hidden = last_hidden.detach().float()
    by_weight = torch.stack([_weight_gradient(hidden, last_conv, by) for by in (by_reconstruction, by_game)])
    of_reconstruction, of_game = reduce(by_weight).flatten(1).norm(dim=1)
    return (of_reconstruction / (of_game + EPSILON)).clamp(0.0, MAX_ADAPTIVE_WEIGHT)


def _weight_gradient(hidden: Tensor, conv: nn.Conv2d, gradient: Tensor) -> Tensor:
    """d L / d W [3, C, kh, kw] from the input of a convolution and d L / d its output."""
    shape = (conv.out_channels, conv.in_channels, *conv.kernel_size)
    assert conv.groups == 1 and isinstance(conv.padding, tuple)
    with torch.autocast(hidden.device.type, enabled=False):
        return conv2d_weight(hidden, shape, gradient, conv.stride, conv.padding, conv.dilation)
