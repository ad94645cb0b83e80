"""Parts of the denoising UNet: timestep embedding, residual block, spatial transformer, resampling.

Follows the LDM / Stable Diffusion UNet (Rombach et al., arXiv 2112.10752) layer by layer, so that its weights fit.
Shapes: B pictures, C channels, H x W latent pixels, N = H*W positions, T text tokens, D context width, E time width.
Called by `pipeline.models.unet` only.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps `t` [B] (integers or floats), float32 [B, dim], cosines before sines.

    The i-th of dim // 2 frequencies is 10000^(-i / (dim // 2)), i from 0 (arXiv 2006.11239, in LDM's order);
    an odd `dim` ends in a column of zeros.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64, device=t.device) * (-math.log(10000.0) / half))
    angles = t.to(torch.float64)[:, None] * frequencies  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1).float()  # [B, 2 * half]
    return F.pad(embedding, (0, dim % 2))


def position_code(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Fixed sine code of the places of a map, float32 [height * width, dim]: half tells the row, half the column."""
    rows = timestep_embedding(torch.arange(height, device=device), dim - dim // 2)  # [height, dim - dim // 2]
    columns = timestep_embedding(torch.arange(width, device=device), dim // 2)  # [width, dim // 2]
    return torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=1)  # [N, dim]


def zeroed(module: nn.Module) -> nn.Module:
    """The same module with all its parameters set to zero: its branch contributes nothing at the first step."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose arithmetic is float32 whatever the input's dtype; the output has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an added time embedding, plus the (projected) input; the second starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(num_groups, in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_dim, out_channels)
        self.norm2 = GroupNorm(num_groups, out_channels, eps=1e-5)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` [B, C, H, W], `time` [B, E] -> [B, C', H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))  # [B, C', H, W]
        h = h + self.time_projection(F.silu(time))[:, :, None, None]  # [B, C', H, W]
        h = self.conv2(F.silu(self.norm2(h)))  # [B, C', H, W]
        return self.shortcut(x) + h  # [B, C', H, W]


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention by torch's fused kernels: `q` [B, heads, N, d], `k` and `v` [B, heads, T, d] -> like `q`.

    Where `seen`, bool [B, 1, 1, T], is False, a place of `k` and `v` does not count.
    In float32 on the CPU: there the backward of the bf16 kernel takes 3 to 10 times as long as the float32 one.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, seen)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), seen).to(q.dtype)


class Attention(nn.Module):
    """Multi-head attention of `x` over `context` (over itself when None); q, k, v without bias, output with bias."""

    skip_zeros = False
    """Places of the context that are zero throughout do not count: padding behind a caption's end."""

    def __init__(self, channels: int, context_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.query = nn.Linear(channels, inner, bias=False)
        self.key = nn.Linear(context_dim, inner, bias=False)
        self.value = nn.Linear(context_dim, inner, bias=False)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`x` [B, N, C], `context` [B, T, D] -> [B, N, C]."""
        source = x if context is None else context
        q, k, v = (
            rearrange(projected, "b n (heads d) -> b heads n d", heads=self.num_heads)  # [B, heads, N or T, head_dim]
            for projected in (self.query(x), self.key(source), self.value(source))
        )
        seen = source.any(dim=2)[:, None, None] if self.skip_zeros else None  # [B, 1, 1, T]
        h = attend(q, k, v, seen)  # [B, heads, N, head_dim]
        return self.out(rearrange(h, "b heads n d -> b n (heads d)"))  # [B, N, C]


class FeedForward(nn.Module):
    """GEGLU feed-forward, inner width 4x, exact GELU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gated = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        value, gate = self.gated(x).chunk(2, dim=-1)  # [B, N, 4C] each
        return self.out(value * F.gelu(gate))  # [B, N, C]


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each behind a LayerNorm and beside a skip."""

    def __init__(self, channels: int, context_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, num_heads, head_dim)
        self.cross_attention = Attention(channels, context_dim, num_heads, head_dim)
        self.feed_forward = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` [B, N, C], `context` [B, T, D] -> [B, N, C]."""
        x = x + self.self_attention(self.norm1(x))  # [B, N, C]
        x = x + self.cross_attention(self.norm2(x), context)  # [B, N, C]
        return x + self.feed_forward(self.norm3(x))  # [B, N, C]


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map; the projection back starts at zero.

    The projections are 1x1 convolutions in SD1 and linear layers in SD2: the same function, other weight shapes.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        num_heads: int,
        head_dim: int,
        depth: int,
        linear_projections: bool,
        position_code: bool,
        num_groups: int,
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.norm = GroupNorm(num_groups, channels, eps=1e-6)
        self.project_in = nn.Linear(channels, inner) if linear_projections else nn.Conv2d(channels, inner, 1)
        self.blocks = nn.ModuleList(TransformerBlock(inner, context_dim, num_heads, head_dim) for _ in range(depth))
        self.project_out = zeroed(nn.Linear(inner, channels) if linear_projections else nn.Conv2d(inner, channels, 1))
        self.linear_projections, self.position_code = linear_projections, position_code

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` [B, C, H, W], `context` [B, T, D] -> [B, C, H, W]."""
        height, width = x.shape[2:]
        h = self.norm(x)  # [B, C, H, W]
        if self.linear_projections:
            h = self.project_in(rearrange(h, "b c y x -> b (y x) c"))  # [B, N, inner]
        else:
            h = rearrange(self.project_in(h), "b c y x -> b (y x) c")  # [B, N, inner]
        if self.position_code:
            h = h + position_code(height, width, h.shape[2], h.device).to(h.dtype)  # [B, N, inner]
        for block in self.blocks:
            h = block(h, context)  # [B, N, inner]
        if self.linear_projections:
            h = rearrange(self.project_out(h), "b (y x) c -> b c y x", y=height)  # [B, C, H, W]
        else:
            h = self.project_out(rearrange(h, "b (y x) c -> b c y x", y=height))  # [B, C, H, W]
        return x + h  # [B, C, H, W]


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution with symmetric padding (the autoencoder's is asymmetric)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
