"""Shape of the autoencoder. Read by its networks, by the stages' configs, by the conversions and by the plan."""

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.quantizers import QuantizerConfig
from pipeline.quantizers.gradient import GradientCodebookConfig


class AutoencoderConfig(Config):
    """Shape of the autoencoder; the defaults are the f8 network."""

    channels: int = Field(default=128, gt=0)
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = Field(default=(1, 2, 2, 4), min_length=1)
    """Channels of each level over `channels`; each level after the first halves the resolution."""
    num_res_blocks: int = Field(default=2, gt=0)
    """Residual blocks at each level of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Resolutions (of the levels of a picture of `resolution`) with attention after each residual block."""
    mid_attention: bool = True
    """Attention between the two blocks in the middle."""
    norm_groups: int = Field(default=32, gt=0)
    """Groups of every GroupNorm."""
    latent_channels: int = Field(default=8, gt=0)
    """Channels that the encoder gives to the 1x1 convolution before the codebook."""
    embedding_dim: int = Field(default=8, gt=0)
    """Width d of the codes and channels of the latent that the second stage learns."""
    resolution: int = Field(default=256, gt=0)
    """Picture size that the network is built for, in pixels; it places the attention."""
    quantizer: QuantizerConfig = GradientCodebookConfig()
    """The codebook, or what stands in its place: one of `pipeline.quantizers`."""

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderConfig":
        if self.resolution % self.downsample_factor:
            raise ValueError(f"resolution {self.resolution} is no multiple of the factor {self.downsample_factor}")
        if any((self.channels * m) % self.norm_groups for m in self.channel_multipliers):
            raise ValueError(f"norm_groups {self.norm_groups} must divide the channels of every level")
        self.quantizer.check_width(self.embedding_dim)
        return self

    @property
    def downsample_factor(self) -> int:
        """Pixels of the picture for one place of the latent, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(d, h, w) of the latent of a picture of `resolution`."""
        side = self.resolution // self.downsample_factor
        return self.embedding_dim, side, side

    @property
    def num_moments(self) -> int:
        """Numbers that the encoder gives for each channel of the latent: 2 for a Gaussian (KL), else 1."""
        return 2 if self.quantizer.kind == "kl" else 1

    def attends(self, level: int) -> bool:
        """Whether the blocks of `level` (0 is the finest) are followed by attention."""
        return self.resolution // 2**level in self.attention_resolutions
