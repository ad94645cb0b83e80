"""Names of the UNet's tensors in other projects: CompVis (latent-diffusion, Stable Diffusion) and diffusers.

Both have our layers one to one, so the maps only rename, in either direction. A `position_code` has no tensors: the
diffusers pipeline that `tessera export` writes adds it itself. Called by `tessera export` and by whoever continues from
published weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from pipeline.models.unet import UNetConfig

Layout = Literal["diffusers", "compvis"]

_RES: dict[Layout, dict[str, str]] = {
    "diffusers": {"time_projection": "time_emb_proj", "shortcut": "conv_shortcut"},
    "compvis": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_projection": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
}
_ATTENTION = {
    "project_in": "proj_in",
    "project_out": "proj_out",
    "blocks.": "transformer_blocks.",
    "self_attention.": "attn1.",
    "cross_attention.": "attn2.",
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".out.": ".to_out.0.",
    "feed_forward.gated.": "ff.net.0.proj.",
    "feed_forward.to_out.0.": "ff.net.2.",  # after `.out.` was renamed
}
"""Inside a spatial transformer, the same in both."""


def renamed(tensors: Mapping[str, Tensor], config: UNetConfig, layout: Layout) -> dict[str, Tensor]:
    """State dict of diffusers' UNet2DConditionModel, or of CompVis' UNetModel, from our UNet's."""
    modules = dict(_modules(config, layout))
    return {_their_name(name, modules, layout): tensor for name, tensor in tensors.items()}


def restored(
    tensors: Mapping[str, Tensor], own_names: list[str], config: UNetConfig, layout: Layout
) -> dict[str, Tensor]:
    """State dict of our UNet, whose names are `own_names`, from theirs; tensors of other names are left out."""
    modules = dict(_modules(config, layout))
    return {name: tensors[_their_name(name, modules, layout)] for name in own_names}


def diffusers_config(config: UNetConfig, in_channels: int, sample_size: int) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DConditionModel; their `attention_head_dim` is the number of heads.

    Args:
        in_channels: of the latent and its condition.
        sample_size: side of the latent in pixels.
    """
    widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
    attends = [2**i in config.attention_factors for i in range(len(widths))]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": in_channels,
        "out_channels": config.latent_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "transformer_layers_per_block": config.transformer_depth,
        "attention_head_dim": [config.heads(width)[0] for width in widths],
        "cross_attention_dim": config.context_dim,
        "use_linear_projection": config.linear_projections,
        "norm_num_groups": config.num_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
    }


def _modules(config: UNetConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    """(our module, theirs) for every residual block, transformer, change of size and single layer."""
    yield from _DIFFUSERS_SINGLES.items() if layout == "diffusers" else _COMPVIS_SINGLES.items()
    num_levels = len(config.channel_multipliers)
    count = {"down": 1, "up": 0}  # CompVis numbers the blocks of each way through
    for way, num_layers in (("down", config.num_res_blocks), ("up", config.num_res_blocks + 1)):
        for level in range(num_levels):
            for layer in range(num_layers):
                ours, theirs = f"{way}.{level}.layers.{layer}", _layer_names(way, level, layer, count[way], layout)
                yield f"{ours}.res", theirs[0]
                yield f"{ours}.attention", theirs[1]
                count[way] += 1
            if level < num_levels - 1:
                factor_level = level if way == "down" else num_levels - 1 - level
                attends = 2**factor_level in config.attention_factors
                yield f"{way}.{level}.resample.conv", _resample_name(way, level, count, attends, layout)


def _layer_names(way: str, level: int, layer: int, number: int, layout: Layout) -> tuple[str, str]:
    if layout == "diffusers":
        return f"{way}_blocks.{level}.resnets.{layer}", f"{way}_blocks.{level}.attentions.{layer}"
    blocks = "input_blocks" if way == "down" else "output_blocks"
    return f"{blocks}.{number}.0", f"{blocks}.{number}.1"


def _resample_name(way: str, level: int, count: dict[str, int], attends: bool, layout: Layout) -> str:
    """CompVis gives going down a number of its own, and puts going up behind the last layer of its level."""
    if layout == "diffusers":
        return f"{way}_blocks.{level}.{way}samplers.0.conv"
    if way == "down":
        count[way] += 1
        return f"input_blocks.{count[way] - 1}.0.op"
    return f"output_blocks.{count[way] - 1}.{2 if attends else 1}.conv"


def _their_name(name: str, modules: Mapping[str, str], layout: Layout) -> str:
    module = next(m for m in _prefixes(name) if m in modules)
    rest = name[len(module) + 1 :]
    if module.endswith(".res"):
        part, _, kind = rest.partition(".")
        rest = f"{_RES[layout].get(part, part)}.{kind}"
    elif module.endswith(".attention"):
        for own, other in _ATTENTION.items():
            rest = rest.replace(own, other)
    return f"{modules[module]}.{rest}"


def _prefixes(name: str) -> Iterator[str]:
    """The modules that a tensor lies in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


_DIFFUSERS_SINGLES = {
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "middle.0.res": "mid_block.resnets.0",
    "middle.0.attention": "mid_block.attentions.0",
    "middle.1.res": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_COMPVIS_SINGLES = {
    "time.0": "time_embed.0",
    "time.2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "middle.0.res": "middle_block.0",
    "middle.0.attention": "middle_block.1",
    "middle.1.res": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
