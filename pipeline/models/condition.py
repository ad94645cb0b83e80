"""Pictures as a condition: what is known of a picture, as channels beside the noised latent.

Concatenation as in LDM (Rombach et al., arXiv 2112.10752, sections 4.4 and 4.5): for inpainting the latent mask and the
latent of the picture without its hole, for super-resolution the latent of the small picture, enlarged by bicubic
interpolation. Used by the diffusion stage in training and by `pipeline.generate` in sampling, so both see the same.
Shapes: B pictures of H x W pixels, latents [B, C, h, w].
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch import cat as concatenate
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.data.transforms import to_model, to_uint8
from pipeline.models.autoencoder import Autoencoder


class InpaintConfig(Config):
    """The network sees the picture around a hole, and where the hole is."""

    kind: Literal["inpaint"] = "inpaint"
    """Chooses this condition."""


class UpscaleConfig(Config):
    """The network sees the picture at a smaller size."""

    kind: Literal["upscale"] = "upscale"
    """Chooses this condition."""
    factor: int = Field(default=2, ge=2)
    """How many times smaller the given picture is, each way."""


ConditionConfig = Annotated[InpaintConfig | UpscaleConfig, Field(discriminator="kind")]


def num_channels(config: InpaintConfig | UpscaleConfig | None, latent_channels: int) -> int:
    """Channels that stand beside the noised latent."""
    if config is None:
        return 0
    return latent_channels + 1 if config.kind == "inpaint" else latent_channels


def inpaint_condition(autoencoder: Autoencoder, images: Tensor, mask: Tensor) -> Tensor:
    """Mask and latent of the picture with a grey hole: [B, 1 + C, h, w].

    Args:
        images: uint8 [B, 3, H, W]; what they show in the hole has no influence.
        mask: bool [B, 1, H, W], True in the hole.
    """
    known = to_model(images).masked_fill(mask, 0.0)  # [B, 3, H, W]
    return concatenate([latent_mask(mask, autoencoder.downsample_factor).float(), autoencoder.encode(known)], dim=1)


def upscale_condition(autoencoder: Autoencoder, small: Tensor, factor: int) -> Tensor:
    """Latent of small pictures, uint8 [B, 3, H / factor, W / factor], after enlarging them: [B, C, h, w]."""
    return autoencoder.encode(to_model(enlarged(small, factor)))


def latent_mask(mask: Tensor, downsample_factor: int) -> Tensor:
    """bool [B, 1, H, W] -> bool [B, 1, h, w]: True for each latent pixel that any True pixel falls into."""
    return F.max_pool2d(mask.float(), downsample_factor) > 0.5


def shrunk(images: Tensor, factor: int) -> Tensor:
    """The small pictures of training: bicubic with antialiasing, uint8 [B, 3, H, W] -> [B, 3, H / factor, W /
    factor]."""
    size = (images.shape[2] // factor, images.shape[3] // factor)
    return to_uint8(F.interpolate(to_model(images), size=size, mode="bicubic", antialias=True))


def enlarged(small: Tensor, factor: int) -> Tensor:
    """Bicubic interpolation, uint8 [B, 3, H, W] -> [B, 3, factor H, factor W]: the baseline of super-resolution."""
    return to_uint8(F.interpolate(to_model(small), scale_factor=factor, mode="bicubic"))
