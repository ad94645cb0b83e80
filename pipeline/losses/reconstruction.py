"""Distance of a reconstruction from its picture: absolute and squared error, edges, and a perceptual distance.

All in float32 on pictures in [-1, 1]. Called by the stage of the autoencoder.
"""

from pathlib import Path

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config
from pipeline.losses.perceptual import PerceptualDistance


class ReconstructionConfig(Config):
    """Weights of the terms; a term of weight 0 is not computed."""

    l1_weight: float = Field(default=1.0, ge=0)
    """Mean absolute error: sharp edges."""
    l2_weight: float = Field(default=0.0, ge=0)
    """Mean squared error: PSNR itself."""
    edge_weight: float = Field(default=0.0, ge=0)
    """Mean squared error of the differences of neighbouring pixels: small shapes whose area is little but whose outline
    is long (after Mathieu et al., "Deep multi-scale video prediction beyond mean square error", 2016, equation 6)."""
    perceptual_weight: float = Field(default=1.0, ge=0)
    """LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018)."""
    perceptual_file: Path | None = None
    """Weights of torchvision's VGG16 as a state dict; null takes `vgg16-397923af.pth` from torch's cache. Without
    either a run with `perceptual_weight` > 0 is refused."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "ReconstructionConfig":
        if self.l1_weight == self.l2_weight == self.perceptual_weight == 0:
            raise ValueError("l1, l2 and perceptual_weight are all 0: nothing would say how bright a picture is")
        return self


class ReconstructionLoss(nn.Module):
    """The weighted terms of `config`, by name."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.perceptual = PerceptualDistance(config.perceptual_file) if config.perceptual_weight else None

    def forward(self, restored: Tensor, images: Tensor) -> dict[str, Tensor]:  # [B, 3, H, W] twice
        """Scalars, means over pictures and pixels; their sum is the reconstruction loss."""
        terms: dict[str, Tensor] = {}
        if self.config.l1_weight:
            terms["l1_loss"] = self.config.l1_weight * F.l1_loss(restored, images)
        if self.config.l2_weight:
            terms["l2_loss"] = self.config.l2_weight * F.mse_loss(restored, images)
        if self.config.edge_weight:
            terms["edge_loss"] = self.config.edge_weight * edge_error(restored, images)
        if self.perceptual:
            terms["perceptual_loss"] = self.config.perceptual_weight * self.perceptual(restored, images).mean()
        return terms


def edge_error(restored: Tensor, images: Tensor) -> Tensor:
    """Squared error of the differences of neighbours, down plus across: [B, 3, H, W] twice -> scalar."""
    error = restored - images  # differences are linear: those of the error are the error of the differences
    return error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
