"""The VQ autoencoder, first stage of latent diffusion: pictures to a small latent map and back.

Names, order and paddings of the layers are those of taming-transformers and latent-diffusion (layout A of
`convert`). The latent of the second stage is the continuous one before quantisation, normalised per channel by
buffers that the validation pass sets; quantisation belongs to `decode`. Pictures are float in [-1, 1].
Shapes: B pictures, f = downsample_factor, d = embedding_dim. Called by both stages, the sampler and precomputation.
"""

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.config import Config
from pipeline.models.blocks import AttnBlock, Downsample, ResnetBlock, Upsample, normalise
from pipeline.quantizers import Quantized, QuantizerConfig, build_quantizer
from pipeline.quantizers.gradient import GradientCodebookConfig


class AutoencoderConfig(Config):
    """Shape of the autoencoder; the defaults are the f8 network."""

    channels: int = Field(default=128, gt=0)
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = Field(default=(1, 2, 2, 4), min_length=1)
    """Channels of each level over `channels`; each level after the first halves the resolution."""
    num_res_blocks: int = Field(default=2, gt=0)
    """Residual blocks at each level of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Resolutions (of the levels of a picture of `resolution`) with attention after each residual block."""
    mid_attention: bool = True
    """Attention between the two blocks in the middle."""
    norm_groups: int = Field(default=32, gt=0)
    """Groups of every GroupNorm."""
    latent_channels: int = Field(default=8, gt=0)
    """Channels that the encoder gives to the 1x1 convolution before the codebook."""
    embedding_dim: int = Field(default=8, gt=0)
    """Width d of the codes and channels of the latent that the second stage learns."""
    resolution: int = Field(default=256, gt=0)
    """Picture size that the network is built for, in pixels; it places the attention."""
    quantizer: QuantizerConfig = GradientCodebookConfig()
    """The codebook, or what stands in its place: one of `pipeline.quantizers`."""

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderConfig":
        if self.resolution % self.downsample_factor:
            raise ValueError(f"resolution {self.resolution} is no multiple of the factor {self.downsample_factor}")
        if any((self.channels * m) % self.norm_groups for m in self.channel_multipliers):
            raise ValueError(f"norm_groups {self.norm_groups} must divide the channels of every level")
        self.quantizer.check_width(self.embedding_dim)
        return self

    @property
    def downsample_factor(self) -> int:
        """Pixels of the picture for one place of the latent, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w) of the latent of a picture of `resolution`."""
        side = self.resolution // self.downsample_factor
        return self.embedding_dim, side, side

    @property
    def num_moments(self) -> int:
        """Numbers that the encoder gives for each channel of the latent: 2 for a Gaussian (KL), else 1."""
        return 2 if self.quantizer.kind == "kl" else 1

    def attends(self, level: int) -> bool:
        """Whether the blocks of `level` (0 is the finest) are followed by attention."""
        return self.resolution // 2**level in self.attention_resolutions


class Reconstruction(NamedTuple):
    """What one training forward gives. A tuple, as `Quantized` is."""

    images: Tensor
    """float32 [B, 3, H, W], near [-1, 1]."""
    last_hidden: Tensor
    """[B, C, H, W]: input of the last convolution, for the adaptive weight of the adversarial loss."""
    latent: Tensor
    """float32 [B, d, H/f, W/f]: raw latents before quantisation."""
    quantized: Quantized
    """Codes, losses and usage."""


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


class Autoencoder(nn.Module):
    """Encoder, codebook, decoder, and the statistics of the latents.

    Args:
        config: shape of the network.
        seed: of the first weights and of the draws of the codebook; equal seeds give equal networks.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(config)
            moments = config.num_moments
            self.quant_conv = nn.Conv2d(moments * config.latent_channels, moments * config.embedding_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.embedding_dim, config.latent_channels, 1)
            self.decoder = Decoder(config)
        self.quantize = build_quantizer(config.quantizer, config.embedding_dim, seed, 3 * config.downsample_factor**2)
        self.register_buffer("latent_mean", torch.zeros(config.embedding_dim))
        self.register_buffer("latent_std", torch.ones(config.embedding_dim))

    @property
    def downsample_factor(self) -> int:
        """Pixels of the picture for one place of the latent, along one side."""
        return self.config.downsample_factor

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:  # [B, 3, H, W], [B, d, h, w]
        moments = self.quant_conv(self.encoder(images))  # [B, d, h, w], for KL [B, 2 d, h, w]
        latent = self.quantize.prepare(moments)  # [B, d, h, w]
        quantized = self.quantize(moments, noise)  # [B, d, h, w]
        hidden, restored = self.decoder(self.post_quant_conv(quantized.latent))  # [B, C, H, W], [B, 3, H, W]
        return Reconstruction(restored, hidden, latent, quantized)

    def checkpointing(self, on: bool) -> None:
        """Whether training recomputes the inside of every level going backward, in place of keeping it."""
        for module in self.modules():
            if isinstance(module, Level):
                module.recompute = on

    @property
    def has_statistics(self) -> bool:
        """False while no validation has measured the latents: their mean and std are then still 0 and 1."""
        return bool(self.latent_mean.any() or (self.latent_std != 1).any())

    def encode_raw(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to float32 latents [B, d, h, w], before quantisation and normalisation."""
        return self.quantize.prepare(self.quant_conv(self.encoder(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Pictures to normalised latents: mean 0, standard deviation 1 per channel over the validation set."""
        return self.normalise(self.encode_raw(images))

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents [B, d, h, w] to pictures [B, 3, H, W]; each vector first becomes its nearest code."""
        return self.decode_raw(self.denormalise(latent))

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latents [B, d, h, w], as `encode_raw` gives them, to pictures [B, 3, H, W]."""
        return self._restore(self.quantize.snap(latent))

    def encode_indices(self, images: Tensor) -> Tensor:
        """Pictures to codes: int64 [B, h, w]."""
        return self.quantize.assign(self.encode_raw(images))

    def decode_indices(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, H, W]."""
        return self._restore(self.quantize.lookup(codes))

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw to normalised latents [B, d, h, w]: the only place where latents are scaled."""
        return (latent - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def denormalise(self, latent: Tensor) -> Tensor:
        """Normalised to raw latents [B, d, h, w]."""
        return latent * _per_channel(self.latent_std) + _per_channel(self.latent_mean)

    def _restore(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes))[1]


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
