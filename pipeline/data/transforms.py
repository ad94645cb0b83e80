"""Pixels as bytes and as numbers of the models. Called by the stages, the generator, the evaluation, precomputation."""

import torch
from torch import Tensor


def to_model(images: Tensor) -> Tensor:
    """uint8 [..., H, W] to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float near [-1, 1] to uint8: floor(clamp(127.5 x + 128, 0, 255)); all 256 levels survive `to_model` and back."""
    return (127.5 * images.float() + 128.0).clamp(0.0, 255.0).to(torch.uint8)
