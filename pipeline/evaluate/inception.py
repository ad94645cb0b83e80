"""The features of the Frechet distance: Inception as it was published for it in 2015, from a local file of weights.

torchvision's network with the three things that the published one does otherwise: its means leave the padding out, its
last block takes a maximum, and pictures are stretched to 299 pixels as TensorFlow 1 did. The names of the weights are
torchvision's, as in the files that torch-fidelity and pytorch-fid offer. Called by `judge` and `fid`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import UserError
from pipeline.torchvision_shim import declare_missing_operators

SIDE = 299
"""Pixels that the network sees along one side."""
NUM_FEATURES = 2048
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""The published file, by torch-fidelity's and pytorch-fid's name."""


class InceptionFeatures(nn.Module):
    """Pictures to the means over the last map.

    Args:
        file: state dict of the network, with or without its classifier.

    Raises:
        UserError: the file is missing, or holds another network.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        if not file.is_file():
            raise UserError(f"inception file {file}: no such file; put {WEIGHTS} there, or leave rFID out")
        weights = torch.load(file, map_location="cpu", weights_only=True)
        self.net = inception()
        try:
            self.net.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("fc.")})
        except RuntimeError as error:
            said = " ".join(str(error).split())[:160]
            raise UserError(f"inception file {file}: not the network of {WEIGHTS}: {said}") from None
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:  # uint8 [B, 3, H, W]
        assert images.dtype == torch.uint8
        features: Tensor = self.net((stretched(images.float(), SIDE) - 128.0) / 128.0)
        return features  # float32 [B, 2048]


def inception() -> nn.Module:
    """The network without its classifier, its weights not yet set."""
    declare_missing_operators()
    from torchvision.models import inception as parts

    def last_two(in_channels: int, **options: Any) -> nn.Module:
        pool = _mean if in_channels < NUM_FEATURES else _maximum
        made: nn.Module = _pooled_by(pool, parts.InceptionE)(in_channels, **options)
        return made

    blocks = [
        parts.BasicConv2d,
        _pooled_by(_mean, parts.InceptionA),
        parts.InceptionB,
        _pooled_by(_mean, parts.InceptionC),
        parts.InceptionD,
        last_two,
        parts.InceptionAux,
    ]
    net = parts.Inception3(aux_logits=False, inception_blocks=blocks, init_weights=False)
    net.fc = nn.Identity()
    return net


def stretched(images: Tensor, side: int) -> Tensor:
    """Bilinear, with the corner of TensorFlow 1's `resize`: row i is read at i H / side. [B, C, H, W] to `side`^2."""
    for dim in (2, 3):
        size = images.shape[dim]
        at = torch.arange(side, device=images.device, dtype=torch.float32) * (size / side)
        low = at.long()
        high = (low + 1).clamp(max=size - 1)
        share = (at - low)[:, None] if dim == 2 else at - low
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), share)
    return images


def _pooled_by(pool: Callable[[Tensor], Tensor], block: type) -> type:
    """torchvision's `block` with another pooling in its last branch."""

    class Pooled(block):
        def _forward(self, x: Tensor) -> list[Tensor]:
            return [*super()._forward(x)[:-1], self.branch_pool(pool(x))]

    return Pooled


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)
