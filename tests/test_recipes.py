"""The recipes of `configs/autoencoder`: each trains, and the published shapes have their published sizes."""

import math
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.distributed.process import start
from pipeline.experiment import build, load_experiment
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.discriminator import build_discriminator
from pipeline.plan.measure import shapes_only
from pipeline.run_folder import RunFolder
from pipeline.stages.autoencoder import AutoencoderStage, AutoencoderStageConfig
from pipeline.tracking.journal import Journal
from pipeline.trainer import fit
from tests.data.small_shards import write_pictures
from tests.formula import save_vgg16
from tests.ranks import run_ranks
from tests.runs import losses
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


def shrunk(recipe: str, folder: Path) -> list[str]:
    """Overrides: fewer channels, codes and smaller pictures, eight of them; every start comes within two steps."""
    config = stage(recipe)
    words = [f"run={folder / recipe}", f"data.train={folder / 'shards'}", f"data.validation={folder / 'shards'}"]
    words += ["data.image_size=32", "stage.model.resolution=32", "stage.model.channels=8", "stage.model.norm_groups=2"]
    words += ["trainer.batch_size=4", "trainer.total_samples=8", "trainer.log_every_steps=1"]
    words += ["optim.warmup_samples=4"]
    if config.model.quantizer.kind != "kl":
        words += ["stage.model.quantizer.num_codes=32"]
    if config.model.quantizer.kind == "ema":
        words += ["stage.model.quantizer.start_step=0"]
    if config.reconstruction.perceptual_weight:
        words += [f"stage.reconstruction.perceptual_file={folder / 'vgg16.pth'}"]
    if config.adversarial:
        words += ["stage.adversarial.start_step=1", "stage.adversarial.discriminator={kind: patch, channels: 8}"]
    return words


def two_steps(recipes: list[str], folder: Path) -> None:
    """The real data, stage, loop and checkpoints of each recipe; every trained number belongs to one engine."""
    process = start()
    for recipe in recipes:
        config = load_experiment(ROOT / "configs" / "autoencoder" / f"{recipe}.yaml", shrunk(recipe, folder))
        run = RunFolder(Path(config.run))
        run.path.mkdir(exist_ok=True)
        built, loader, checkpoints = build(config, run, process)
        assert isinstance(built, AutoencoderStage)
        journal = Journal(run.path, enabled=process.is_main)
        with closing(loader):
            fit(built, loader, checkpoints, journal, process, config.trainer, run.samples)
            checkpoints.settle()


def check_two_steps(recipe: str, folder: Path) -> None:
    """The journal has the terms of the recipe, finite; the checkpoint has been committed."""
    config, rows = stage(recipe), losses(folder / recipe)
    assert set(rows) == {1, 2} and "validation_psnr" in rows[2], recipe
    assert all(math.isfinite(value) for row in rows.values() for value in row.values()), recipe
    assert ("generator_loss" in rows[2]) == (config.adversarial is not None) and "generator_loss" not in rows[1]
    assert ("perceptual_loss" in rows[1]) == (config.reconstruction.perceptual_weight > 0)
    assert list((folder / recipe / "checkpoints").iterdir()), recipe


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight pictures, and formula weights in the place of VGG16's."""
    folder = tmp_path_factory.mktemp("recipes")
    write_pictures(folder / "shards", [4, 4], size=(32, 32))
    save_vgg16(folder / "vgg16.pth")
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(recipe: str, materials: Path) -> None:
    two_steps([recipe], materials)
    check_two_steps(recipe, materials)


@pytest.mark.slow
def test_every_recipe_trains_on_two_ranks(materials: Path, tmp_path: Path) -> None:
    for name in ("shards", "vgg16.pth"):
        (tmp_path / name).symlink_to(materials / name)
    run_ranks(two_steps, 2, RECIPES, tmp_path)
    for recipe in RECIPES:
        check_two_steps(recipe, tmp_path)
