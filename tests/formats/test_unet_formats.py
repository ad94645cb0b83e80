"""A latent UNet as a diffusers pipeline: diffusers opens the folder and draws our picture."""

from pathlib import Path

import pytest
import torch

from pipeline.__main__ import ABOUT, COMMANDS
from pipeline.checkpoint.package import UNET_KIND, save_package
from pipeline.command_line import run_program
from pipeline.data.transforms import to_uint8
from pipeline.diffusion.objective import ObjectiveConfig
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.diffusion.schedule import ScheduleConfig
from pipeline.generate import Generator
from pipeline.models.condition import UpscaleConfig
from pipeline.models.latent_diffusion import LatentDiffusionConfig, build_latent_diffusion
from pipeline.models.text import NULL_PROMPT
from pipeline.randomness import Purpose
from pipeline.torchvision_shim import declare_missing_operators
from tests.test_generate import CONFIG, autoencoder, save_autoencoder

SAMPLING = SamplingConfig(sampler="ddim", num_steps=5, guidance_scale=3.0, guidance_rescale=0.5)
OBJECTIVE = ObjectiveConfig(prediction="v", schedule=ScheduleConfig(zero_terminal_snr=True))
BASE = CONFIG.model_copy(update={"sampling": SAMPLING, "objective": OBJECTIVE})
PLACES = CONFIG.unet.model_copy(update={"position_code": True, "linear_projections": True})
CONFIGS = {"plain": BASE, "linear, with places": BASE.model_copy(update={"unet": PLACES})}
PROMPTS = ["a red circle", "a blue square at the left, a long caption that does not fit into the tower's tokens"]


def packaged(folder: Path, config: LatentDiffusionConfig) -> None:
    model, _ = build_latent_diffusion(config, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=draws)
    first = save_autoencoder(folder / "first", autoencoder())
    document = config.model_dump(mode="json") | {"kind": "diffusion"}
    save_package(folder / "own", UNET_KIND, model.state_dict(), document, {}, "card", autoencoder=first)


def export(folder: Path, form: str) -> int:
    argv = ["export", str(folder / "own"), "--out", str(folder / "theirs"), "--format", form]
    return run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_diffusers_draws_the_same_pictures(tmp_path: Path, config: LatentDiffusionConfig) -> None:
    packaged(tmp_path, config)
    assert export(tmp_path, "diffusers") == 0
    declare_missing_operators()
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel

    pipe = DiffusionPipeline.from_pretrained(tmp_path / "theirs", trust_remote_code=True)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    generator = Generator.load(tmp_path / "own")
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(tokens.input_ids, generator.text.tokenize(PROMPTS))
    torch.testing.assert_close(pipe._encode([*PROMPTS, NULL_PROMPT]), generator.text.encode([*PROMPTS, NULL_PROMPT]))
    noise = generator._noise(Purpose.INITIAL_NOISE, [1, 2], 0, (4, 8, 8))
    drawn = pipe(PROMPTS, latents=noise, output_type="pt").images  # [B, 3, H, W] in [0, 1]
    own = torch.from_numpy(generator.sample(PROMPTS, [1, 2])).permute(0, 3, 1, 2)
    assert (to_uint8(drawn * 2 - 1).int() - own.int()).abs().max() <= 1
    latents = generator._sample_latents(PROMPTS, [1, 2], SAMPLING, "", None, 1.0, (4, 8, 8))
    decoded = (generator.autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, decoded, rtol=0, atol=1e-4)


def test_compvis_names_hold_both_stages(tmp_path: Path) -> None:
    packaged(tmp_path, BASE)
    assert export(tmp_path, "compvis") == 2  # norm_groups 4: their code has 32
    packaged(tmp_path / "again", CONFIGS["linear, with places"])
    assert export(tmp_path / "again", "compvis") == 2


@pytest.mark.parametrize(
    "change, word",
    [
        ({"condition": UpscaleConfig()}, "upscale"),
        ({"objective": ObjectiveConfig(prediction="flow", schedule=ScheduleConfig(kind="flow"))}, "flow"),
    ],
)
def test_what_diffusers_cannot_sample_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, word: str
) -> None:
    packaged(tmp_path, BASE.model_copy(update=change))
    assert export(tmp_path, "diffusers") == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()
