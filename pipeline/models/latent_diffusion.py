"""The text-to-latent model of the second stage: UNet, text tower, and the config that rebuilds both.

`LatentDiffusion` is the module that is trained, averaged, stored and exported; a frozen text tower is no part of it,
since its weights are known by name. Built by `pipeline.stages.diffusion` and `pipeline.generate`.
Shapes: B pictures, C x H x W latent, T text tokens, D context width.
"""

import torch
from torch import Tensor, nn

from pipeline.config import Config, UserError
from pipeline.diffusion.objective import ObjectiveConfig
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.models.condition import ConditionConfig, num_channels
from pipeline.models.text import TextConfig, TextTower, build_text_tower
from pipeline.models.unet import UNet, UNetConfig


class LatentDiffusionConfig(Config):
    """What makes a text-to-latent model: the networks, what they predict, and how to sample from them."""

    unet: UNetConfig
    """The denoising network."""
    text: TextConfig
    """The text tower."""
    condition: ConditionConfig | None = None
    """What the network sees of a given picture (inpaint, upscale); needs pictures, not stored latents, to train on."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Noise schedule, prediction target and loss weights."""
    sampling: SamplingConfig = SamplingConfig()
    """How previews are made, and what `tessera sample` does unless told otherwise."""


class LatentDiffusion(nn.Module):
    """The UNet, and the text tower when it is trained with it (None when it is frozen and kept elsewhere)."""

    def __init__(self, unet: UNet, text: TextTower | None) -> None:
        super().__init__()
        self.unet = unet
        self.text = text

    def forward(self, noised: Tensor, t: Tensor, captions: Tensor) -> Tensor:
        """`noised` [B, C + K, H, W] with its condition, `t` [B], tokens [B, T] or states [B, T, D] -> [B, C, H, W]."""
        if not captions.is_floating_point():
            assert self.text is not None, "a frozen text tower encodes before the model is called"
            captions = self.text(captions)  # [B, T, D]
        return self.unet(noised, t, captions)  # [B, C, H, W]


def build_unet(config: LatentDiffusionConfig) -> UNet:
    """The UNet, with an input for the condition where there is one."""
    channels = num_channels(config.condition, config.unet.latent_channels)
    return UNet(config.unet, channels, config.text.mask_padding)


def build_latent_diffusion(config: LatentDiffusionConfig, seed: int) -> tuple[LatentDiffusion, TextTower]:
    """The model with weights drawn from `seed`, and its text tower, which is part of the model if it is trainable.

    Raises:
        UserError: a context width of the UNet that is not the text tower's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = build_text_tower(config.text)
        unet = build_unet(config)
    if text.width != config.unet.context_dim:
        raise UserError(f"unet.context_dim: {config.unet.context_dim}, but the text states are {text.width} wide")
    return LatentDiffusion(unet, None if text.frozen else text), text
