"""The discriminator of overlapping patches (Isola et al., "Image-to-Image Translation", 2017), with GroupNorm."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.models.discriminator.draw import draw_weights


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
        draw_weights(self, lambda weight: nn.init.normal_(weight, 0.0, 0.02, generator=generator))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
        return self.main(images)  # [B, 1, H / 2^num_layers - 2, W / 2^num_layers - 2]
