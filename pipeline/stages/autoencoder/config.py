"""Configs of the first stage and of its adversarial game. Read by `pipeline.experiment` and by the stage."""

from typing import Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.distributed.ema import EmaConfig
from pipeline.losses.adversarial import GameKind
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.discriminator import AnyDiscriminatorConfig, DiscriminatorConfig
from pipeline.optim import OptimConfig


class AdversarialConfig(Config):
    """The game against a discriminator."""

    weight: float = Field(default=0.75, gt=0)
    """Weight of the generator's part, on top of the adaptive weight."""
    start_step: int = Field(default=0, ge=0)
    """Generator step at which the game begins; before it the discriminator is neither run nor trained."""
    loss: GameKind = "hinge"
    """`hinge` (taming, LDM, LlamaGen) or `non_saturating` (StyleGAN2, ViT-VQGAN)."""
    lecam_weight: float = Field(default=0.0, ge=0)
    """Weight of LeCAM's pull of the logits towards their averages: for little data (Open-MAGVIT2: 0.05)."""
    r1_weight: float = Field(default=0.0, ge=0)
    """gamma of R1, half of which weighs the squared slope at real pictures (ViT-VQGAN: 10); not with ZeRO 3."""
    r1_every_steps: int = Field(default=16, gt=0)
    """How often R1 is taken; its weight is multiplied by this, so that the mean pull stays the same."""
    discriminator: AnyDiscriminatorConfig = DiscriminatorConfig()
    """Its shape."""
    optim: OptimConfig = OptimConfig(betas=(0.5, 0.9))
    """Its optimizer; the schedule counts the samples of the run, as the generator's does."""


class AutoencoderStageConfig(Config):
    """The first stage."""

    kind: Literal["autoencoder"] = "autoencoder"
    """Chooses this stage."""
    model: AutoencoderConfig = AutoencoderConfig()
    """The autoencoder."""
    reconstruction: ReconstructionConfig
    """What draws a reconstruction to its picture."""
    adversarial: AdversarialConfig | None = None
    """The game; null trains without one."""
    ema: EmaConfig = EmaConfig()
    """Average of the weights: it is validated, shown and exported."""
    gradient_checkpointing: bool = False
    """Recompute the levels of the encoder and decoder going backward: less memory, a third more time."""
    compile_levels: bool = False
    """torch.compile every level of the autoencoder: faster after minutes of compiling; not with ZeRO 3."""
