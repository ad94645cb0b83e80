"""The adversarial game of VQGAN: hinge losses and the weight that balances it against the reconstruction.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021, equation 7. Called by the stage.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

MAX_ADAPTIVE_WEIGHT = 1e4
EPSILON = 1e-4


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-mean D(x'): falls when the discriminator takes reconstructions for real."""
    return -fake_logits.float().mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge: half the mean of relu(1 - D(x)) plus half the mean of relu(1 + D(x'))."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


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
