"""Vector quantizers: the union of their configs and the table that builds them."""

from typing import Annotated

from pydantic import Field

from pipeline.quantizers.base import Quantized, Quantizer
from pipeline.quantizers.ema import EmaCodebookConfig, EmaQuantizer
from pipeline.quantizers.gradient import GradientCodebookConfig, GradientQuantizer

__all__ = ["Quantized", "Quantizer", "QuantizerConfig", "build_quantizer"]

QuantizerConfig = Annotated[GradientCodebookConfig | EmaCodebookConfig, Field(discriminator="kind")]


def build_quantizer(config: GradientCodebookConfig | EmaCodebookConfig, width: int, seed: int) -> Quantizer:
    """The quantizer of `config` for vectors of `width`, its first codes drawn from `seed`."""
    if isinstance(config, EmaCodebookConfig):
        return EmaQuantizer(config, width, seed)
    return GradientQuantizer(config, width, seed)
