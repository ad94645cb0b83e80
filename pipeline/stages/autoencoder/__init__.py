"""The first stage: its config, and the objective that trains it."""

from pipeline.stages.autoencoder.config import AdversarialConfig, AutoencoderStageConfig
from pipeline.stages.autoencoder.stage import AutoencoderStage

__all__ = ["AdversarialConfig", "AutoencoderStage", "AutoencoderStageConfig"]
