"""The two networks of the autoencoder: pictures to a small map of vectors, and such a map to pictures.

Names, order and paddings of the layers are those of taming-transformers and latent-diffusion (layout A of
`pipeline.models.convert`). Shapes: B pictures, f = downsample_factor. Built by `model`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.models.autoencoder.config import AutoencoderConfig
from pipeline.models.blocks import AttnBlock, Downsample, ResnetBlock, Upsample, normalise


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, attention after each or nowhere, then a change of resolution."""

    def __init__(
        self, config: AutoencoderConfig, level: int, in_channels: int, num_blocks: int, resize: type[nn.Module] | None
    ) -> None:
        super().__init__()
        channels = config.channels * config.channel_multipliers[level]
        widths = [in_channels] + [channels] * (num_blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(width, channels, config.norm_groups) for width in widths)
        attentions = num_blocks if config.attends(level) else 0
        self.attn = nn.ModuleList(AttnBlock(channels, config.norm_groups) for _ in range(attentions))
        self.downsample = Downsample(channels) if resize is Downsample else nn.Identity()
        self.upsample = Upsample(channels) if resize is Upsample else nn.Identity()
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:  # [B, Cin, H, W]
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)  # [B, C, H/2, W/2], [B, C, 2H, 2W] or [B, C, H, W]

    def _run(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config.norm_groups)
        self.attn_1 = AttnBlock(channels, config.norm_groups) if config.mid_attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, config.norm_groups)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w]
        return self.block_2(self.attn_1(self.block_1(x)))  # [B, C, h, w]


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to [B, latent_channels, H/f, W/f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width, last = config.channels, len(config.channel_multipliers) - 1
        for i, multiplier in enumerate(config.channel_multipliers):
            self.down.append(Level(config, i, width, config.num_res_blocks, Downsample if i < last else None))
            width = config.channels * multiplier
        self.mid = Middle(width, config)
        self.norm_out = normalise(width, config.norm_groups)
        self.conv_out = nn.Conv2d(width, config.num_moments * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W]
        x = self.conv_in(images)  # [B, C, H, W]
        for level in self.down:
            x = level(x)  # [B, C * m, H/2, W/2]
        x = self.mid(x)  # [B, C * m, H/f, W/f]
        return self.conv_out(F.silu(self.norm_out(x)))  # [B, latent_channels, H/f, W/f]


class Decoder(nn.Module):
    """[B, latent_channels, H/f, W/f] to the input of the last convolution and the pictures; level 0 is the finest."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.channels * config.channel_multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = Middle(width, config)
        levels = []
        for i, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            levels.append(Level(config, i, width, config.num_res_blocks + 1, Upsample if i > 0 else None))
            width = config.channels * multiplier
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = normalise(width, config.norm_groups)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:  # [B, latent_channels, H/f, W/f]
        x = self.mid(self.conv_in(latent))  # [B, C * m, H/f, W/f]
        for level in reversed(self.up):
            x = level(x)  # [B, C * m, 2h, 2w]
        hidden = F.silu(self.norm_out(x))  # [B, C, H, W]
        return hidden, self.conv_out(hidden).float()  # [B, 3, H, W]
