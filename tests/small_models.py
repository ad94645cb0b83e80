"""Networks of both stages, as small as they come; a test names what it changes."""

from typing import Any

from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.unet import UNetConfig


def small_autoencoder(**changes: Any) -> AutoencoderConfig:
    """Of convolutions alone: pictures of 16 x 16 pixels to latents of 4 x 8 x 8, and back."""
    small = {
        "channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "mid_attention": False,
        "norm_groups": 4,
        "latent_channels": 4,
        "embedding_dim": 4,
        "resolution": 16,
    }
    return AutoencoderConfig(**(small | changes))


def small_unet(**changes: Any) -> UNetConfig:
    """Of latents with four channels and text states of width 16, with attention at half their size."""
    small = {
        "latent_channels": 4,
        "channels": 16,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_factors": (2,),
        "num_heads": 2,
        "context_dim": 16,
        "num_groups": 8,
    }
    return UNetConfig(**(small | changes))
