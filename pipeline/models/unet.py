"""The text-conditioned denoising UNet of latent diffusion; by its config the UNet of Stable Diffusion 1 or 2.

`UNet(x, t, context)` predicts what `pipeline.diffusion.objective` says (noise, velocity or clean latent) from a noised
latent, a timestep and text states. Parameters and layer order are those of LDM (Rombach et al., arXiv 2112.10752), so
the weights of SD map one to one. Built by `pipeline.stages.diffusion` and `pipeline.generate`.
Shapes: B pictures, C channels, H x W latent pixels, T text tokens, D context width, E time width.
"""

from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.config import Config
from pipeline.models.unet_blocks import (
    Downsample,
    GroupNorm,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    timestep_embedding,
    zeroed,
)


class UNetConfig(Config):
    """Shape of the UNet; the defaults are those of Stable Diffusion 1."""

    latent_channels: int = Field(default=4, gt=0)
    """Channels of the latent, in and out."""
    channels: int = Field(default=320, gt=0)
    """Width of the first level; the time embedding is four times as wide."""
    channel_multipliers: tuple[int, ...] = Field(default=(1, 2, 4, 4), min_length=1)
    """Width of each level as a multiple of `channels`; each level after the first works at half the size."""
    num_res_blocks: int = Field(default=2, gt=0)
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_factors: tuple[int, ...] = (1, 2, 4)
    """Downsample factors (not sizes) of the levels with a spatial transformer; the middle always has one."""
    num_heads: int | None = Field(default=None, gt=0)
    """Number of attention heads at every level (SD1: 8). Give this or `head_dim`."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of one attention head at every level (SD2: 64). Give this or `num_heads`."""
    transformer_depth: int = Field(default=1, gt=0)
    """Transformer blocks in one spatial transformer."""
    context_dim: int = Field(default=768, gt=0)
    """Width of the text states (SD1: 768, SD2: 1024)."""
    linear_projections: bool = False
    """Linear layers instead of 1x1 convolutions into and out of the transformers (SD2)."""
    position_code: bool = False
    """Show the transformers a fixed sine code of each place; SD learns places from the borders, which takes long."""
    num_groups: int = Field(default=32, gt=0)
    """Groups of every group normalisation."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory for about a third more time."""
    compile_blocks: bool = False
    """Compile each block for training (torch.compile): pays on GPUs and over long runs. Not under ZeRO 3, whose weights
    come and go inside a block."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.num_heads is None) == (self.head_dim is None):
            raise ValueError(f"give num_heads or head_dim, one of them (got {self.num_heads} and {self.head_dim})")
        for width in (self.channels * multiplier for multiplier in self.channel_multipliers):
            heads_or_dim = self.num_heads or self.head_dim or 1
            if width % heads_or_dim or width % self.num_groups:
                raise ValueError(f"width {width} is no multiple of {heads_or_dim} (heads), {self.num_groups} (groups)")
        return self

    def heads(self, width: int) -> tuple[int, int]:
        """(number of heads, width of one head) of an attention layer of that width."""
        if self.num_heads is not None:
            return self.num_heads, width // self.num_heads
        assert self.head_dim is not None
        return width // self.head_dim, self.head_dim


class Layer(nn.Module):
    """A residual block and, on levels with attention, a spatial transformer."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, attends: bool) -> None:
        super().__init__()
        self.res = ResBlock(in_channels, out_channels, 4 * config.channels, config.num_groups)
        self.attention = transformer(config, out_channels) if attends else None
        self.recompute = config.gradient_checkpointing
        self.compiled = _compiled(self) if config.compile_blocks else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """`x` [B, C, H, W], `time` [B, E], `context` [B, T, D] -> [B, C', H, W]."""
        if not torch.is_grad_enabled():  # sampling and validation have other shapes, and are not worth a compilation
            return self._compute(x, time, context)
        compute = self.compiled or self._compute
        if self.recompute:
            return checkpoint(compute, x, time, context, use_reentrant=False)
        return compute(x, time, context)

    def _compute(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.res(x, time)  # [B, C', H, W]
        return x if self.attention is None else self.attention(x, context)  # [B, C', H, W]


def _compiled(layer: Layer) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The layer's computation, compiled at its first call.

    Dynamo counts compilations by code object and gives up after eight, silently but for a warning; a network has more
    layers than that, so each has a copy of the code.
    """
    plain = type(layer)._compute
    own = FunctionType(plain.__code__.replace(), plain.__globals__)
    return torch.compile(MethodType(own, layer), dynamic=False)


class Level(nn.Module):
    """The layers that work at one size, and the change of size behind them (none at the end of each way)."""

    layers: Sequence[Layer]

    def __init__(self, layers: list[Layer], resample: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.resample = resample


class UNet(nn.Module):
    """Predicts from a noised latent; the first output of a new model is exactly zero.

    Args:
        config: the shape.
        condition_channels: channels that stand behind those of the noised latent in the input, not in the output.
        mask_padding: text states that are zero throughout have no influence.
    """

    down: Sequence[Level]
    up: Sequence[Level]

    def __init__(self, config: UNetConfig, condition_channels: int = 0, mask_padding: bool = False) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        time_dim = 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(config.latent_channels + condition_channels, widths[0], 3, padding=1)
        levels, skips = _way_down(config, widths)
        self.down = nn.ModuleList(levels)  # type: ignore[assignment]
        self.middle = nn.ModuleList(
            [
                Layer(config, widths[-1], widths[-1], attends=True),
                Layer(config, widths[-1], widths[-1], attends=False),
            ]
        )
        self.up = nn.ModuleList(_way_up(config, widths, skips))  # type: ignore[assignment]
        self.norm_out = GroupNorm(config.num_groups, widths[0], eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(widths[0], config.latent_channels, 3, padding=1))
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                module.cross_attention.skip_zeros = mask_padding

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noised latent and condition `x` [B, C + K, H, W], `t` [B], text states `context` [B, T, D] -> [B, C, H, W].

        H and W must divide by 2^(levels - 1); `t` may be on the CPU.
        """
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU
        t = t.to(x.device, non_blocking=True)  # [B]
        time = self.time(timestep_embedding(t, self.config.channels).to(x.dtype))  # [B, E]
        h = self.conv_in(x)  # [B, C', H, W]
        skips = [h]
        for level in self.down:
            for layer in level.layers:
                h = layer(h, time, context)  # [B, C', H, W]
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)  # [B, C', H/2, W/2]
                skips.append(h)
        for middle in self.middle:
            h = middle(h, time, context)  # [B, C', H, W]
        for level in self.up:
            for layer in level.layers:
                h = layer(torch.cat([h, skips.pop()], dim=1), time, context)  # [B, C', H, W]
            if level.resample is not None:
                h = level.resample(h)  # [B, C', 2H, 2W]
        return self.conv_out(F.silu(self.norm_out(h)))  # [B, C, H, W]


def transformer(config: UNetConfig, width: int) -> SpatialTransformer:
    """The spatial transformer that stands behind a residual block of that width."""
    num_heads, head_dim = config.heads(width)
    return SpatialTransformer(
        width,
        config.context_dim,
        num_heads,
        head_dim,
        depth=config.transformer_depth,
        linear_projections=config.linear_projections,
        position_code=config.position_code,
        num_groups=config.num_groups,
    )


def _way_down(config: UNetConfig, widths: list[int]) -> tuple[list[Level], list[int]]:
    """The levels from the finest to the coarsest, and the widths of the skips in the order in which they arise."""
    levels, width, skips = [], widths[0], [widths[0]]
    for i, out in enumerate(widths):
        layers = []
        for _ in range(config.num_res_blocks):
            layers.append(Layer(config, width, out, attends=2**i in config.attention_factors))
            width = out
            skips.append(width)
        is_last = i == len(widths) - 1
        if not is_last:
            skips.append(width)
        levels.append(Level(layers, None if is_last else Downsample(width)))
    return levels, skips


def _way_up(config: UNetConfig, widths: list[int], skips: list[int]) -> list[Level]:
    """The levels from the coarsest to the finest; each layer takes the concatenation [h, skip]."""
    levels, width, skips = [], widths[-1], list(skips)
    for i, out in reversed(list(enumerate(widths))):
        layers = []
        for _ in range(config.num_res_blocks + 1):
            layers.append(Layer(config, width + skips.pop(), out, attends=2**i in config.attention_factors))
            width = out
        levels.append(Level(layers, None if i == 0 else Upsample(width)))
    assert not skips
    return levels
