"""The recipes of `configs/autoencoder`: each builds, and the published shapes have their published sizes."""

import pytest

from pipeline.experiment import load_experiment
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.discriminator import build_discriminator
from pipeline.plan.measure import shapes_only
from pipeline.stages.autoencoder import AutoencoderStageConfig
from tests.source import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs" / "autoencoder").glob("*.yaml"))
MILLIONS = {"f4": (22.3, 33.0), "f8": (27.4, 40.3), "f16": (29.3, 42.4), "kl-f8": (34.2, 49.5)}
"""Parameters of encoder and decoder: latent-diffusion's vq-f4, vq-f8 and kl-f8; taming's f16, which has LATENTS."""
LATENTS = {"f16": 256}


def stage(recipe: str) -> AutoencoderStageConfig:
    found = load_experiment(ROOT / "configs" / "autoencoder" / f"{recipe}.yaml").stage
    assert isinstance(found, AutoencoderStageConfig)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_builds(recipe: str) -> None:
    config = stage(recipe)
    with shapes_only():
        model = Autoencoder(config.model)
        if config.adversarial:
            build_discriminator(config.adversarial.discriminator)
    assert all(part.numel() for part in model.parameters())


@pytest.mark.parametrize("recipe", list(MILLIONS))
def test_published_shapes_have_their_published_sizes(recipe: str) -> None:
    with shapes_only():
        shape = stage(recipe).model
        wide = {"latent_channels": LATENTS.get(recipe, shape.latent_channels)}
        model = Autoencoder(shape.model_copy(update=wide))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
    assert sizes == pytest.approx(MILLIONS[recipe], abs=0.06)


def test_recipes_are_of_their_kinds() -> None:
    kinds = {recipe: stage(recipe).model.quantizer.kind for recipe in ("f4", "f8", "f16", "kl-f8", "vqvae-f8")}
    assert kinds == {"f4": "ema", "f8": "gradient", "f16": "gradient", "kl-f8": "kl", "vqvae-f8": "ema"}
    assert stage("vqvae-f8").adversarial is None and not stage("vqvae-f8").reconstruction.perceptual_weight
    assert [stage(f"f{f}").model.downsample_factor for f in (4, 8, 16)] == [4, 8, 16]
