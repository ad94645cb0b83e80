"""A discriminator that looks at frozen features of VGG16 (after Sauer et al., "Projected GANs Converge Faster", 2021).

Small trained heads, one at each of four depths, judge what a network that was trained on photographs sees; the network
itself never changes. Its weights are buffers outside the state dict: a checkpoint holds the heads alone, and no engine
shards or averages the rest. Built by `build_discriminator`; the stage fills the features in from a local file.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, UserError
from pipeline.losses.perceptual import cached_file
from pipeline.models.discriminator.draw import draw_weights

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions; a maximum halves the picture between two rows."""
FIRST_HEAD = 1
"""The rows from here on have a head."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for pictures in [-1, 1]."""
REMEDY = "put torchvision's VGG16 there, or take kind: patch"


class FeatureDiscriminatorConfig(Config):
    """Heads on frozen features; pictures need 32 pixels a side."""

    kind: Literal["features"] = "features"
    """Chooses this discriminator."""
    file: Path | None = None
    """Weights of torchvision's VGG16 as a state dict; null takes `vgg16-397923af.pth` from torch's cache. Without
    either the run is refused."""
    channels: int = Field(default=64, gt=0)
    """Channels inside every head."""
    norm_groups: int = Field(default=8, gt=0)
    """Groups of the GroupNorm in every head; must divide `channels`."""


class FeatureDiscriminator(nn.Module):
    """Every head gives a map of logits; the finer ones are averaged to the size of the last, and all together."""

    def __init__(self, config: FeatureDiscriminatorConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        widths = [row[-1] for row in STAGES[FIRST_HEAD:]]
        self.heads = nn.ModuleList(_head(width, config.channels, config.norm_groups) for width in widths)
        self.trunk = FrozenVgg()
        generator = torch.Generator().manual_seed(seed)
        draw_weights(self.heads, lambda weight: nn.init.kaiming_normal_(weight, 0.2, generator=generator))

    def load_features(self) -> None:
        """Fill the frozen features in from the config's file.

        Raises:
            UserError: the file is missing, or holds another network.
        """
        self.trunk.load(self.config.file or cached_file())

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
        maps = [head(features) for head, features in zip(self.heads, self.trunk(images), strict=True)]
        size = maps[-1].shape[2:]
        return torch.stack([F.adaptive_avg_pool2d(part, size) for part in maps]).mean(0)  # [B, 1, H/16, W/16]


class FrozenVgg(nn.Module):
    """The convolutions of VGG16 as buffers that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        width = 3
        for number, channels in enumerate(channels for row in STAGES for channels in row):
            self.register_buffer(f"weight_{number}", torch.zeros(channels, width, 3, 3), persistent=False)
            self.register_buffer(f"bias_{number}", torch.zeros(channels), persistent=False)
            width = channels

    def load(self, file: Path) -> None:
        """Copy torchvision's `features.*` in their order."""
        if not file.is_file():
            raise UserError(
                f"discriminator.file {file}: no such file; put torchvision's VGG16 there, or take kind: patch"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        found = [tensor for name, tensor in state.items() if name.startswith("features.")]
        buffers = [buffer for name, buffer in self.named_buffers() if name not in ("shift", "scale")]
        if [tensor.shape for tensor in found] != [buffer.shape for buffer in buffers]:
            raise UserError(f"discriminator.file {file}: not torchvision's VGG16; {REMEDY}")
        for buffer, tensor in zip(buffers, found, strict=True):
            buffer.copy_(tensor)

    def forward(self, images: Tensor) -> list[Tensor]:  # [B, 3, H, W] in [-1, 1]
        shift, scale = (self.get_buffer(name).to(images.dtype) for name in ("shift", "scale"))
        x, number, seen = (images - shift) / scale, 0, []
        for stage, row in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if stage else x
            for _ in row:
                weight, bias = self.get_buffer(f"weight_{number}"), self.get_buffer(f"bias_{number}")
                x, number = F.relu(F.conv2d(x, weight, bias, padding=1)), number + 1
            if stage >= FIRST_HEAD:
                seen.append(x)
        return seen  # [B, 128, H/2, W/2] ... [B, 512, H/16, W/16]


def _head(width: int, channels: int, norm_groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, 1),
        nn.GroupNorm(norm_groups, channels),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(norm_groups, channels),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 1, 1),
    )
