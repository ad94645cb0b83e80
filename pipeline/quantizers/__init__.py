"""Quantizers: the union of their configs and the table that builds them."""

from typing import Annotated

from pydantic import Field

from pipeline.quantizers.base import Quantized, Quantizer
from pipeline.quantizers.codebook import CodebookQuantizer
from pipeline.quantizers.ema import EmaCodebookConfig, EmaQuantizer
from pipeline.quantizers.gradient import GradientCodebookConfig, GradientQuantizer
from pipeline.quantizers.kl import KlBottleneck, KlConfig
from pipeline.quantizers.lattice import FsqConfig, FsqQuantizer, LfqConfig, LfqQuantizer
from pipeline.quantizers.residual import ResidualConfig, ResidualQuantizer
from pipeline.quantizers.simvq import SimVqConfig, SimVqQuantizer

__all__ = ["Quantized", "Quantizer", "QuantizerConfig", "build_quantizer"]

CodebookKinds = GradientCodebookConfig | EmaCodebookConfig | SimVqConfig
QuantizerConfig = Annotated[
    CodebookKinds | ResidualConfig | FsqConfig | LfqConfig | KlConfig, Field(discriminator="kind")
]
STAGE_SEED_STRIDE = 1_000_003
"""Distance of the seeds of two stages: their codes are not the same, and those of a stage are not a neighbour run's."""


def build_quantizer(config: QuantizerConfig, width: int, seed: int, values_per_place: int = 1) -> Quantizer:
    """The quantizer of `config` for vectors of `width`, its first codes drawn from `seed`.

    Args:
        values_per_place: pixel values for each place of the latent; scales the KL loss.
    """
    match config:
        case FsqConfig():
            return FsqQuantizer(config)
        case LfqConfig():
            return LfqQuantizer(config, width)
        case KlConfig():
            return KlBottleneck(config, width, values_per_place)
        case ResidualConfig():
            seeds = (seed + STAGE_SEED_STRIDE * number for number in range(config.num_stages))
            return ResidualQuantizer(config, [_build_codebook(config.stage, width, stage_seed) for stage_seed in seeds])
    return _build_codebook(config, width, seed)


def _build_codebook(config: CodebookKinds, width: int, seed: int) -> CodebookQuantizer:
    match config:
        case EmaCodebookConfig():
            return EmaQuantizer(config, width, seed)
        case SimVqConfig():
            return SimVqQuantizer(config, width, seed)
    return GradientQuantizer(config, width, seed)
