"""The discriminator of residual blocks (Karras et al., "Analyzing and Improving the Image Quality", 2020)."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.models.discriminator.draw import draw_weights


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
        draw_weights(self, lambda weight: nn.init.kaiming_normal_(weight, 0.2, generator=generator))

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
