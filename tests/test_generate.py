"""The generator: pictures that depend on prompt and seed only, start pictures, exact repainting, packages."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, save_package
from pipeline.config import UserError
from pipeline.diffusion.objective import ObjectiveConfig, build_objective
from pipeline.diffusion.sampling import SamplerName, SamplingConfig
from pipeline.evaluate.grid import captioned_grid
from pipeline.generate import Generator
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.condition import InpaintConfig, UpscaleConfig
from pipeline.models.latent_diffusion import LatentDiffusionConfig, build_latent_diffusion
from pipeline.models.text import TrainableTextConfig
from pipeline.randomness import Purpose
from tests.small_models import small_autoencoder, small_unet

CONFIG = LatentDiffusionConfig(
    unet=small_unet(),
    text=TrainableTextConfig(width=16, num_layers=1, num_heads=2, context_length=12),
    objective=ObjectiveConfig(prediction="v"),
    sampling=SamplingConfig(num_steps=4, guidance_scale=3.0),
)
AUTOENCODER = small_autoencoder(channel_multipliers=(1, 1, 1), resolution=32)
PROMPTS = ["a red circle", "a blue square", "a green star"]


def autoencoder() -> Autoencoder:
    model = Autoencoder(AUTOENCODER, seed=3).eval().requires_grad_(False)
    model.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    return model


@pytest.fixture(scope="module")
def generator() -> Generator:
    model, text = build_latent_diffusion(CONFIG, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():  # the zeros of the start would make all prompts alike
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=draws)
    return Generator(model, text, build_objective(CONFIG.objective), CONFIG.sampling, autoencoder())


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_picture_does_not_depend_on_its_batch(generator: Generator, sampler: SamplerName) -> None:
    sampling = SamplingConfig(sampler=sampler, num_steps=3, guidance_scale=3.0)
    together = generator.sample(PROMPTS, seeds=[7, 8, 9], sampling=sampling)
    alone = generator.sample(PROMPTS[1:2], seeds=[8], sampling=sampling)
    chunked = generator.sample(PROMPTS, seeds=[7, 8, 9], sampling=sampling, batch_size=2)
    assert together.shape == (3, 32, 32, 3) and together.dtype == np.uint8
    # noise is equal bit by bit; kernels for another batch size may round the last bit otherwise
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(together.astype(int) - chunked).max() <= 1


def test_noise_is_a_function_of_the_seed(generator: Generator) -> None:
    together = generator._noise(Purpose.INITIAL_NOISE, [7, 8], 0, (4, 8, 8))
    assert torch.equal(together[1:], generator._noise(Purpose.INITIAL_NOISE, [8], 0, (4, 8, 8)))
    assert not torch.equal(together[1:], generator._noise(Purpose.SAMPLER_NOISE, [8], 0, (4, 8, 8)))


def test_prompt_seed_guidance_and_negative_prompt_matter(generator: Generator) -> None:
    plain = generator.sample(PROMPTS[:1], seeds=[1])
    others = [
        generator.sample(PROMPTS[1:2], seeds=[1]),
        generator.sample(PROMPTS[:1], seeds=[2]),
        generator.sample(PROMPTS[:1], seeds=[1], negative="a green star"),
        generator.sample(PROMPTS[:1], seeds=[1], sampling=CONFIG.sampling.model_copy(update={"guidance_scale": 1.0})),
    ]
    assert np.array_equal(plain, generator.sample(PROMPTS[:1], seeds=[1]))
    assert not any(np.array_equal(plain, other) for other in others)


def test_a_weak_start_stays_near_the_given_picture(generator: Generator) -> None:
    """Less strength, nearer to what the autoencoder makes of the given picture."""
    start = np.full((32, 32, 3), 200, dtype=np.uint8)
    sampling = CONFIG.sampling.model_copy(update={"num_steps": 100})
    with torch.no_grad():
        images = torch.from_numpy(start).permute(2, 0, 1)[None] / 127.5 - 1.0
        known = generator.autoencoder.encode(images)
    distances = []
    for strength in (0.01, 0.3, 1.0):
        canvas = generator._canvas(start, None, 1)
        with torch.no_grad():
            latents = generator._sample_latents(PROMPTS[:1], [3], sampling, "", canvas, strength, known.shape[1:])
        distances.append(float((latents - known).square().mean()))
    assert distances[0] < 0.1 * distances[1] < distances[2]


def test_repainting_leaves_the_rest_exactly(generator: Generator) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[5:20, 10:30] = True
    start = picture()
    painted = generator.sample(PROMPTS[:2], seeds=[1, 2], init_image=start, mask=mask)
    assert np.array_equal(painted[:, ~mask], np.repeat(start[None], 2, 0)[:, ~mask])
    assert not np.array_equal(painted[0][mask], start[mask])


def test_the_latent_mask_covers_every_touched_pixel(generator: Generator) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[7, 8] = True
    canvas = generator._canvas(picture(), mask, 1)
    assert canvas.latent_mask().nonzero().tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seeds": [1]}, "seeds"),
        ({"mask": np.zeros((32, 32), bool)}, "init_image"),
        ({"image_size": 36}, "multiple of 8"),
        ({"init_image": picture()[None].repeat(2, 0)}, "init_image"),
        ({"init_image": picture(), "mask": np.zeros((16, 32), bool)}, "mask"),
        ({"init_image": picture(), "strength": 0.0}, "strength"),
        ({"sampling": SamplingConfig(num_steps=1001)}, "num_steps"),
    ],
)
def test_what_cannot_be_is_refused(generator: Generator, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator.sample(PROMPTS, **{"seeds": [1, 2, 3], **arguments})


def test_other_sizes(generator: Generator) -> None:
    assert generator.sample(PROMPTS[:1], seeds=[0], image_size=48).shape == (1, 48, 48, 3)


def save(folder: Path, generator: Generator, first: Path) -> None:
    config = CONFIG.model_dump(mode="json") | {"kind": "diffusion", "caption_drop": 0.1}
    save_package(folder, UNET_KIND, generator.model.state_dict(), config, {}, "card", autoencoder=first)


def save_autoencoder(folder: Path, model: Autoencoder) -> Path:
    save_package(folder, AUTOENCODER_KIND, model.state_dict(), AUTOENCODER.model_dump(mode="json"), {}, "card")
    return folder


def test_a_loaded_package_draws_the_same_pictures(generator: Generator, tmp_path: Path) -> None:
    first = save_autoencoder(tmp_path / "first", generator.autoencoder)
    save(tmp_path / "model", generator, first)
    loaded = Generator.load(tmp_path / "model", autoencoder=first)
    expected = generator.sample(PROMPTS, seeds=[1, 2, 3])
    assert np.array_equal(loaded.sample(PROMPTS, seeds=[1, 2, 3]), expected)
    half = Generator.load(tmp_path / "model", precision="bf16").sample(PROMPTS, seeds=[1, 2, 3])
    assert np.abs(half.astype(int) - expected).mean() < 16


def test_wrong_packages_are_refused(generator: Generator, tmp_path: Path) -> None:
    first = save_autoencoder(tmp_path / "first", generator.autoencoder)
    other = save_autoencoder(tmp_path / "other", Autoencoder(AUTOENCODER, seed=4))
    save(tmp_path / "model", generator, first)
    with pytest.raises(UserError, match="vq-autoencoder"):
        Generator.load(first)
    with pytest.raises(UserError, match="was trained with"):
        Generator.load(tmp_path / "model", autoencoder=other)


def test_grid_holds_every_picture() -> None:
    images = np.stack([picture(seed) for seed in range(5)])
    sheet = captioned_grid(images, ["a caption that is too long for one line", "", "c", "d", "e"], columns=3)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 3 * (128 + 4) + 4
    for i in range(5):
        top = 4 + i // 3 * (sheet.shape[0] - 4) // 2
        left = 4 + i % 3 * 132
        assert np.array_equal(sheet[top : top + 128 : 4, left : left + 128 : 4], images[i])


def conditioned(condition: InpaintConfig | UpscaleConfig) -> Generator:
    """A generator whose model sees a given picture."""
    config = CONFIG.model_copy(update={"condition": condition})
    model, text = build_latent_diffusion(config, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=draws)
    objective = build_objective(config.objective)
    return Generator(model, text, objective, config.sampling, autoencoder(), condition=condition)


def test_an_inpainting_model_sees_the_picture_around_the_hole() -> None:
    inpainter = conditioned(InpaintConfig())
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:20, 8:28] = True
    hidden, seen = picture(0), 255 - picture(0)
    hidden[mask] = 99  # another hole; `seen` differs beside it too
    pictures = [
        inpainter.sample(PROMPTS[:1], [1], init_image=start, mask=mask)[0] for start in (picture(0), hidden, seen)
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0][~mask], picture(0)[~mask])
    assert not np.array_equal(pictures[0][mask], pictures[2][mask])
    assert inpainter.sample(PROMPTS, [1, 2, 3]).shape == (3, 32, 32, 3)  # with nothing known: from text alone


def test_an_enlarging_model_doubles_what_it_is_given(generator: Generator) -> None:
    enlarger = conditioned(UpscaleConfig(factor=2))
    together = enlarger.sample(PROMPTS[:2], [1, 2], low_res=np.stack([picture(0), picture(1)]))
    assert together.shape == (2, 64, 64, 3)
    alone = enlarger.sample(PROMPTS[1:2], [2], low_res=picture(1))
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(enlarger.sample(PROMPTS[1:2], [2], low_res=picture(0)), alone)
    with pytest.raises(UserError, match="enlarges pictures"):
        enlarger.sample(PROMPTS[:1], [1])
    with pytest.raises(UserError, match="has not learnt"):
        generator.sample(PROMPTS[:1], [1], low_res=picture())


def test_guidance_only_inside_its_interval(generator: Generator) -> None:
    def sample(**changes: object) -> np.ndarray:
        settings = CONFIG.sampling.model_copy(update={"guidance_scale": 6.0, **changes})
        return generator.sample(PROMPTS, [1, 2, 3], settings)

    plain, guided = sample(guidance_scale=1.0), sample()
    assert np.array_equal(sample(guidance_interval=(0.0, 1.0)), guided)
    assert np.array_equal(sample(guidance_interval=(0.01, 0.02)), plain)  # no step of the four lies there
    middle = sample(guidance_interval=(0.3, 0.8))
    assert not np.array_equal(middle, guided) and not np.array_equal(middle, plain)


def test_rescaled_guidance_keeps_the_spread_of_plain_sampling(generator: Generator) -> None:
    def spread(scale: float, rescale: float) -> float:
        update = {"guidance_scale": scale, "guidance_rescale": rescale}
        sampling = CONFIG.sampling.model_copy(update=update)
        with torch.no_grad():
            return float(generator._sample_latents(PROMPTS, [1, 2, 3], sampling, "", None, 1.0, (4, 8, 8)).std())

    plain, guided, rescaled = spread(1.0, 0.0), spread(100.0, 0.0), spread(100.0, 1.0)
    assert guided > 2 * plain
    assert abs(rescaled - plain) < 0.5 * (guided - plain)
