"""The autoencoder in other projects: the names of its tensors (`names`) and its shape (`shapes`).

CompVis (taming-transformers, latent-diffusion), diffusers (VQModel, AutoencoderKL) and LlamaGen's tokenizer. None has a
place for the mean and std of the latents: whoever trains on them elsewhere must take them along. Called by
`tessera export` and by whoever continues a published first stage.
"""

from pipeline.models.convert.names import (
    from_compvis,
    from_diffusers,
    from_llamagen,
    to_compvis,
    to_diffusers,
    to_llamagen,
)
from pipeline.models.convert.shapes import (
    compvis_config,
    config_from_compvis,
    config_from_diffusers,
    diffusers_config,
)

__all__ = [
    "compvis_config",
    "config_from_compvis",
    "config_from_diffusers",
    "diffusers_config",
    "from_compvis",
    "from_diffusers",
    "from_llamagen",
    "to_compvis",
    "to_diffusers",
    "to_llamagen",
]
