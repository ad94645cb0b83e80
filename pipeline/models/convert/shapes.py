"""Shape of the autoencoder in the configs of other projects, both ways. Called through `pipeline.models.convert`."""

from collections.abc import Mapping
from typing import Any

from pipeline.config import UserError, parse_config
from pipeline.models.autoencoder import AutoencoderConfig

IMAGE_CHANNELS = {"in_channels": 3, "out_channels": 3}


def diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Arguments of diffusers' VQModel, or AutoencoderKL, for this network; quantisation stays a part of its decode.

    Raises:
        UserError: a KL bottleneck of another width than the channels before it.
    """
    levels = range(len(config.channel_multipliers))
    down = ["AttnDownEncoderBlock2D" if config.attends(i) else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if config.attends(i) else "UpDecoderBlock2D" for i in reversed(levels)]
    return {
        **_bottleneck(config),
        **IMAGE_CHANNELS,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": [config.channels * multiplier for multiplier in config.channel_multipliers],
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "sample_size": config.resolution,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.mid_attention,
        "force_upcast": False,
    }


def config_from_diffusers(arguments: Mapping[str, Any]) -> AutoencoderConfig:
    """Our network for the config.json of a VQModel or AutoencoderKL; the inverse of `diffusers_config`.

    Raises:
        UserError: a network that ours cannot be.
    """
    widths, kinds = arguments["block_out_channels"], arguments["down_block_types"]
    size = arguments["sample_size"]
    is_kl = arguments.get("_class_name") == "AutoencoderKL"
    quantizer: dict[str, Any] = {"kind": "kl"}
    if not is_kl:
        quantizer = {"kind": "gradient", "num_codes": arguments["num_vq_embeddings"], "cosine": False, "legacy": True}
    tree = {
        "channels": widths[0],
        "channel_multipliers": [_whole(width, widths[0]) for width in widths],
        "num_res_blocks": arguments["layers_per_block"],
        "attention_resolutions": [size // 2**i for i, kind in enumerate(kinds) if kind.startswith("Attn")],
        "mid_attention": arguments.get("mid_block_add_attention", True),
        "norm_groups": arguments["norm_num_groups"],
        "latent_channels": arguments["latent_channels"],
        "embedding_dim": arguments.get("vq_embed_dim") or arguments["latent_channels"],
        "resolution": size,
        "quantizer": quantizer,
    }
    return parse_config(tree, AutoencoderConfig, source="config.json")


def compvis_config(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.yaml of latent-diffusion for this network, without its losses.

    Raises:
        UserError: attention in the levels but not in the middle: their code takes it away in both.
    """
    if config.attention_resolutions and not config.mid_attention:
        raise UserError("mid_attention is false beside attention_resolutions: CompVis' code has both or none")
    is_kl = config.quantizer.kind == "kl"
    network = {
        "double_z": is_kl,
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
    }
    codes = {} if is_kl else {"n_embed": config.quantizer.num_codes}
    target = f"ldm.models.autoencoder.{'AutoencoderKL' if is_kl else 'VQModelInterface'}"
    lossless = {"target": "torch.nn.Identity"}
    params = {"embed_dim": config.embedding_dim, **codes, "ddconfig": network, "lossconfig": lossless}
    return {"model": {"target": target, "params": params}}


def config_from_compvis(document: Mapping[str, Any]) -> AutoencoderConfig:
    """Our network for a config.yaml of taming-transformers or latent-diffusion; the inverse of `compvis_config`."""
    params = document["model"]["params"]
    network = params["ddconfig"]
    quantizer: dict[str, Any] = {"kind": "kl"}
    if not network["double_z"]:
        quantizer = {"kind": "gradient", "num_codes": params["n_embed"], "cosine": False, "legacy": True}
    tree = {
        "channels": network["ch"],
        "channel_multipliers": network["ch_mult"],
        "num_res_blocks": network["num_res_blocks"],
        "attention_resolutions": network["attn_resolutions"],
        "mid_attention": network.get("attn_type", "vanilla") != "none",
        "latent_channels": network["z_channels"],
        "embedding_dim": params["embed_dim"],
        "resolution": network["resolution"],
        "quantizer": quantizer,
    }
    return parse_config(tree, AutoencoderConfig, source="config.yaml")


def _bottleneck(config: AutoencoderConfig) -> dict[str, Any]:
    """The class there, and what only it takes."""
    if config.quantizer.kind != "kl":
        codes = {"num_vq_embeddings": config.quantizer.num_codes, "vq_embed_dim": config.embedding_dim}
        return {"_class_name": "VQModel", **codes}
    if config.embedding_dim != config.latent_channels:
        widths = f"embedding_dim {config.embedding_dim} and latent_channels {config.latent_channels}"
        raise UserError(f"{widths}: AutoencoderKL has one width for both; export to compvis")
    return {"_class_name": "AutoencoderKL"}


def _whole(width: int, channels: int) -> int:
    if width % channels:
        raise UserError(f"block_out_channels: {width} is no multiple of {channels}, as ours are")
    return width // channels
