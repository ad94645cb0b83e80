"""Names of the autoencoder's tensors in other projects: CompVis (taming, latent-diffusion) and diffusers.

Our own names are CompVis' names for everything that both have, so that map only drops and adds; diffusers' are reached
by renaming module by module. Neither layout has a place for the mean and std of the latents: whoever trains on them
elsewhere must take them along. Called by `tessera export` and by whoever continues a published first stage.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.config import UserError
from pipeline.models.autoencoder import AutoencoderConfig

OWN_BUFFERS = ("latent_mean", "latent_std", "quantize.active", "quantize.embedding.counts", "quantize.embedding.sums")
"""Tensors of ours that the other layouts lack."""
COMPVIS_GROUPS = 32
"""Groups of every GroupNorm there, fixed in the code."""
TRAINING_ONLY = ("loss.", "model_ema.", "colorize")
"""Beginnings of the names in a CompVis checkpoint that are no part of the autoencoder."""

_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)")
_MODULES = {
    r"block\.(\d+)": r"resnets.\1",
    r"attn\.(\d+)": r"attentions.\1",
    r"(down|up)sample\.conv": r"\1samplers.0.conv",
    r"mid\.block_1": "mid_block.resnets.0",
    r"mid\.block_2": "mid_block.resnets.1",
    r"mid\.attn_1": "mid_block.attentions.0",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
}
_PROJECTION = re.compile(r"(.*attn[._]\d+\.)(norm|q|k|v|proj_out)\.(weight|bias)")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def to_compvis(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """State dict of latent-diffusion's VQModel from ours.

    Raises:
        UserError: the network has another number of groups than their code.
    """
    if config.norm_groups != COMPVIS_GROUPS:
        raise UserError(f"norm_groups is {config.norm_groups}: CompVis' code has {COMPVIS_GROUPS}; export to diffusers")
    return _plain_codes(tensors, config)


def from_compvis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for our Autoencoder with a `gradient` codebook from the `state_dict` of a CompVis checkpoint.

    Load with strict=False: the statistics of the latents keep their start and are set by the next validation. A
    checkpoint of theirs was trained with the `legacy` loss and without `cosine`.
    """
    return {name: tensor for name, tensor in state.items() if not name.startswith(TRAINING_ONLY)}


def to_diffusers(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """State dict of diffusers' VQModel, built from `diffusers_config`, from ours."""
    num_levels = len(config.channel_multipliers)
    renamed = {}
    for name, tensor in _plain_codes(tensors, config).items():
        is_matrix = _PROJECTION.fullmatch(name) and tensor.dim() == 4
        renamed[_diffusers_name(name, num_levels)] = tensor[:, :, 0, 0].contiguous() if is_matrix else tensor
    return renamed


def diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Arguments of diffusers' VQModel for this network; quantisation stays a part of its decode.

    Raises:
        UserError: an attention that their blocks cannot place.
    """
    levels = range(len(config.channel_multipliers))
    down = ["AttnDownEncoderBlock2D" if config.attends(i) else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if config.attends(i) else "UpDecoderBlock2D" for i in reversed(levels)]
    return {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": [config.channels * multiplier for multiplier in config.channel_multipliers],
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "sample_size": config.resolution,
        "num_vq_embeddings": config.quantizer.num_codes,
        "norm_num_groups": config.norm_groups,
        "vq_embed_dim": config.embedding_dim,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.mid_attention,
        "force_upcast": False,
    }


def compvis_config(config: AutoencoderConfig) -> dict[str, Any]:
    """The `model` of a config.yaml of latent-diffusion for this network, without its losses.

    Raises:
        UserError: attention in the levels but not in the middle: their code takes it away in both.
    """
    if config.attention_resolutions and not config.mid_attention:
        raise UserError("mid_attention is false beside attention_resolutions: CompVis' code has both or none")
    return {
        "model": {
            "target": "ldm.models.autoencoder.VQModelInterface",
            "params": {
                "embed_dim": config.embedding_dim,
                "n_embed": config.quantizer.num_codes,
                "ddconfig": {
                    "double_z": False,
                    "z_channels": config.latent_channels,
                    "resolution": config.resolution,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": config.channels,
                    "ch_mult": list(config.channel_multipliers),
                    "num_res_blocks": config.num_res_blocks,
                    "attn_resolutions": list(config.attention_resolutions),
                    "attn_type": "vanilla" if config.mid_attention else "none",
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        }
    }


def _plain_codes(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Without our own buffers, and with unit codes for `cosine`: among those the nearest is the most similar."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in OWN_BUFFERS}
    if config.quantizer.cosine:
        kept["quantize.embedding.weight"] = F.normalize(kept["quantize.embedding.weight"], dim=1)
    return kept


def _diffusers_name(name: str, num_levels: int) -> str:
    """One tensor's name there; the levels of their decoder count from the coarsest."""
    if match := _PROJECTION.fullmatch(name):
        name = f"{match[1]}{_ATTENTION[match[2]]}.{match[3]}"
    if match := _LEVEL.fullmatch(name):
        encodes = match[1] == "encoder.down"
        level = int(match[2]) if encodes else num_levels - 1 - int(match[2])
        name = f"{match[1]}_blocks.{level}.{match[3]}"
    for ours, theirs in _MODULES.items():
        name = re.sub(rf"\b{ours}\b", theirs, name)
    return name
