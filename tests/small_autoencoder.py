"""A first stage as small as they come, of convolutions alone; a test names what it changes."""

from typing import Any

from pipeline.models.autoencoder import AutoencoderConfig


def small_autoencoder(**changes: Any) -> AutoencoderConfig:
    """Pictures of 16 x 16 pixels to latents of 4 x 8 x 8, and back."""
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
