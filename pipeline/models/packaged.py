"""Networks of exported folders: built from the config inside, filled with the weights inside.

Used by `pipeline.generate`, the exporters of `pipeline.formats`, the second stage (its first one), the evaluation of
autoencoders and latent precomputation.
"""

from pathlib import Path

from pipeline.checkpoint.package import Package, load_package
from pipeline.config import UserError, parse_config
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.latent_diffusion import LatentDiffusion, LatentDiffusionConfig, build_latent_diffusion
from pipeline.models.text import TextTower


def load_latent_diffusion(package: Package) -> tuple[LatentDiffusionConfig, LatentDiffusion, TextTower]:
    """Config, text-to-latent model and text tower of an exported folder."""
    config = parse_config(_model_fields(package), LatentDiffusionConfig, source=str(package.folder))
    model, text = build_latent_diffusion(config, seed=0)
    model.load_state_dict(package.tensors())
    return config, model, text


def load_autoencoder(package: Package) -> Autoencoder:
    """The autoencoder of an exported folder, frozen, with its latent statistics."""
    autoencoder = Autoencoder(parse_config(package.config, AutoencoderConfig, source=str(package.folder)))
    autoencoder.load_state_dict(package.tensors())
    return autoencoder.eval().requires_grad_(False)


def first_stage_of(package: Package, other: Path | str | None = None) -> Package:
    """The autoencoder that a text-to-latent model decodes with: its own, or the same one from the folder `other`.

    Raises:
        UserError: `package` is no text-to-latent model, or `other` is an autoencoder that it was not trained on.
    """
    inner = package.autoencoder
    if inner is None:
        raise UserError(f"{package.folder}: holds a {package.kind}; pictures need an exported latent-unet")
    first_stage = inner if other is None else load_package(other)
    if first_stage.digest != inner.digest:
        raise UserError(
            f"{other}: autoencoder {first_stage.digest[:12]};"
            f" {package.folder} was trained with {inner.digest[:12]}, use that one"
        )
    return first_stage


def _model_fields(package: Package) -> dict[str, object]:
    """The part of a stage's config that describes the model; what only training needs is left out."""
    return {name: package.config[name] for name in LatentDiffusionConfig.model_fields if name in package.config}
