"""Discriminators of the adversarial game: patches (Isola et al., 2017) and residual blocks (Karras et al., 2020).

Neither mixes pictures: GroupNorm takes the place of the usual BatchNorm, and StyleGAN2's deviation over the batch is
left out. A logit then depends on its own picture alone, so the game is the same on any number of ranks and real and
reconstructed pictures can share one batch. Called by the autoencoder's stage.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config


class DiscriminatorConfig(Config):
    """Shape of the patch discriminator; the defaults see patches of 70 x 70 pixels."""

    kind: Literal["patch"] = "patch"
    """Chooses this discriminator."""
    channels: int = Field(default=64, gt=0)
    """Channels of the first layer; they double with each further one, up to eight times."""
    num_layers: int = Field(default=3, gt=0)
    """Layers of stride 2; the patch grows with them. Pictures smaller than 64 pixels want 2."""
    norm_groups: int = Field(default=8, gt=0)
    """Groups of every GroupNorm; must divide `channels`."""


class ResidualDiscriminatorConfig(Config):
    """Shape of the discriminator after StyleGAN2's."""

    kind: Literal["residual"] = "residual"
    """Chooses this discriminator."""
    channels: int = Field(default=64, gt=0)
    """Channels at full resolution; they double with each block."""
    max_channels: int = Field(default=512, gt=0)
    """Where they stop doubling."""
    num_blocks: int = Field(default=4, gt=0)
    """Blocks that halve the picture; what is left needs 4 pixels a side."""


AnyDiscriminatorConfig = Annotated[DiscriminatorConfig | ResidualDiscriminatorConfig, Field(discriminator="kind")]


class Discriminator(nn.Module):
    """A map of unbounded logits, one for each overlapping patch; positive means real. Weights start at N(0, 0.02)."""

    def __init__(self, config: DiscriminatorConfig, seed: int = 0) -> None:
        super().__init__()
        widths = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, len(widths)):
            stride = 2 if i < config.num_layers else 1
            conv = nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(config.norm_groups, widths[i]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed)
        _initialise(self, lambda weight: nn.init.normal_(weight, 0.0, 0.02, generator=generator))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
        return self.main(images)  # [B, 1, H / 2^num_layers - 2, W / 2^num_layers - 2]


class ResidualDiscriminator(nn.Module):
    """Residual blocks with a blur before every halving, then one logit for each 4 x 4 window of what is left."""

    def __init__(self, config: ResidualDiscriminatorConfig, seed: int = 0) -> None:
        super().__init__()
        widths = [min(config.channels * 2**i, config.max_channels) for i in range(config.num_blocks + 1)]
        self.conv_in = nn.Conv2d(3, widths[0], 1)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.conv_last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.conv_out = nn.Conv2d(widths[-1], 1, 4)
        generator = torch.Generator().manual_seed(seed)
        _initialise(self, lambda weight: nn.init.kaiming_normal_(weight, 0.2, generator=generator))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
        x = F.leaky_relu(self.conv_in(images), 0.2)  # [B, C, H, W]
        for block in self.blocks:
            x = block(x)  # [B, 2 C, H/2, W/2]
        return self.conv_out(F.leaky_relu(self.conv_last(x), 0.2))  # [B, 1, H / 2^num_blocks - 3, W / 2^num_blocks - 3]


class _Block(nn.Module):
    """Two convolutions beside a skip, both halved after a blur of (1, 3, 3, 1)."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(line, line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        h = F.leaky_relu(self.conv1(x), 0.2)  # [B, C, H, W]
        h = F.leaky_relu(self.conv2(self._halved(h)), 0.2)  # [B, C', H/2, W/2]
        return (h + self.skip(self._halved(x))) * math.sqrt(0.5)  # [B, C', H/2, W/2]

    def _halved(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def build_discriminator(config: DiscriminatorConfig | ResidualDiscriminatorConfig, seed: int = 0) -> nn.Module:
    """The discriminator of `config`, its weights drawn from `seed`; pictures [B, 3, H, W] to logits [B, 1, h, w]."""
    if isinstance(config, ResidualDiscriminatorConfig):
        return ResidualDiscriminator(config, seed)
    return Discriminator(config, seed)


def _initialise(module: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of all convolutions in order; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
