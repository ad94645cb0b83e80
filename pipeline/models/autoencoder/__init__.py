"""The autoencoder: its shape (`config`), its networks (`coders`), the whole (`model`), large pictures (`tiling`)."""

from pipeline.models.autoencoder.config import AutoencoderConfig
from pipeline.models.autoencoder.model import Autoencoder, Reconstruction

__all__ = ["Autoencoder", "AutoencoderConfig", "Reconstruction"]
