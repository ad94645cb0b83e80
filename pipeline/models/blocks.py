"""Building blocks of the convolutional autoencoder: residual block, attention, down- and upsampling.

The blocks, their names and their paddings are those of taming-transformers and latent-diffusion (Esser et al.,
"Taming Transformers", 2021; Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022),
so that their weights load by name. Shapes: B pictures, C channels, H x W pixels. Called by `autoencoder`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normalise(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the taming layout; `groups` must divide `channels`."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, around a skip (1x1 when the channel count changes)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = normalise(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalise(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, Cin, H, W]
        h = self.conv1(F.silu(self.norm1(x)))  # [B, Cout, H, W]
        h = self.conv2(F.silu(self.norm2(h)))  # [B, Cout, H, W]
        return torch.add(self.nin_shortcut(x), h)  # [B, Cout, H, W]


class AttnBlock(nn.Module):
    """Self-attention over all pixels with one head; 1x1 convolutions make q, k, v, as the layout stores them."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = normalise(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, HW, C]
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, HW, C], scale C^-0.5
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))  # [B, C, H, W]


class Downsample(nn.Module):
    """Halves H and W: one zero row below and one zero column at the right, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # [B, C, H/2, W/2]


class Upsample(nn.Module):
    """Doubles H and W: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # [B, C, 2H, 2W]
