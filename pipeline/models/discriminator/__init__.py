"""Discriminators of the adversarial game: the union of their configs, and the table that builds them.

None mixes pictures: GroupNorm takes the place of the usual BatchNorm, and StyleGAN2's deviation over the batch is
left out. A logit then depends on its own picture alone, so the game is the same on any number of ranks and real and
reconstructed pictures can share one batch. Called by the autoencoder's stage and by the plan.
"""

from typing import Annotated

from pydantic import Field
from torch import nn

from pipeline.models.discriminator.features import FeatureDiscriminator, FeatureDiscriminatorConfig
from pipeline.models.discriminator.patch import Discriminator, DiscriminatorConfig
from pipeline.models.discriminator.residual import ResidualDiscriminator, ResidualDiscriminatorConfig

__all__ = [
    "AnyDiscriminatorConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "FeatureDiscriminator",
    "FeatureDiscriminatorConfig",
    "ResidualDiscriminator",
    "ResidualDiscriminatorConfig",
    "build_discriminator",
]

AnyDiscriminatorConfig = Annotated[
    DiscriminatorConfig | ResidualDiscriminatorConfig | FeatureDiscriminatorConfig, Field(discriminator="kind")
]


def build_discriminator(config: AnyDiscriminatorConfig, seed: int = 0) -> nn.Module:
    """The discriminator of `config`, its weights drawn from `seed`; pictures [B, 3, H, W] to logits [B, 1, h, w]."""
    match config:
        case ResidualDiscriminatorConfig():
            return ResidualDiscriminator(config, seed)
        case FeatureDiscriminatorConfig():
            return FeatureDiscriminator(config, seed)
    return Discriminator(config, seed)
