"""A latent UNet as a diffusers pipeline: diffusers opens the folder and draws our picture."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from pipeline.__main__ import ABOUT, COMMANDS
from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, load_package, save_package
from pipeline.command_line import run_program
from pipeline.data.transforms import to_uint8
from pipeline.diffusion.objective import ObjectiveConfig
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.diffusion.schedule import ScheduleConfig
from pipeline.formats.text import write_text_encoder
from pipeline.generate import Generator
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.condition import InpaintConfig, UpscaleConfig
from pipeline.models.convert import from_compvis
from pipeline.models.convert_unet import restored
from pipeline.models.latent_diffusion import LatentDiffusionConfig, build_latent_diffusion
from pipeline.models.text import NULL_PROMPT, PretrainedTextConfig, build_text_tower
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.kl import KlConfig
from pipeline.randomness import Purpose
from pipeline.torchvision_shim import declare_missing_operators
from tests.test_generate import AUTOENCODER, CONFIG

SAMPLING = SamplingConfig(sampler="ddim", num_steps=5, guidance_scale=3.0, guidance_rescale=0.5)
OBJECTIVE = ObjectiveConfig(prediction="v", schedule=ScheduleConfig(zero_terminal_snr=True))
BASE = CONFIG.model_copy(update={"sampling": SAMPLING, "objective": OBJECTIVE})
PLACES = CONFIG.unet.model_copy(update={"position_code": True, "linear_projections": True})
SHIFTED = ObjectiveConfig(prediction="x0", schedule=ScheduleConfig(kind="linear", beta_end=0.02, shift=2.0))
INTERVAL = SAMPLING.model_copy(update={"guidance_interval": (0.3, 0.9), "guidance_rescale": 0.0})
CONFIGS = {
    "plain": BASE,
    "linear, with places": BASE.model_copy(update={"unet": PLACES}),
    "shifted, guided in an interval": BASE.model_copy(update={"objective": SHIFTED, "sampling": INTERVAL}),
}
MASKED = BASE.model_copy(update={"text": CONFIG.text.model_copy(update={"mask_padding": True})})
COMPVIS_UNET = CONFIG.unet.model_copy(update={"channels": 32, "num_groups": 32})
PLAIN_CODES = GradientCodebookConfig(num_codes=16, cosine=False)
COMPVIS_FIRST = AUTOENCODER.model_copy(update={"channels": 32, "norm_groups": 32, "quantizer": PLAIN_CODES})
KL = AUTOENCODER.model_copy(update={"quantizer": KlConfig()})
PROMPTS = ["a red circle", "a blue square at the left, a long caption that does not fit into the tower's tokens"]


def packaged(folder: Path, config: LatentDiffusionConfig, first_stage: AutoencoderConfig = AUTOENCODER) -> None:
    model, _ = build_latent_diffusion(config, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1, generator=draws)
    own = Autoencoder(first_stage, seed=3).eval().requires_grad_(False)
    own.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    first, fields = folder / "first", first_stage.model_dump(mode="json")
    save_package(first, AUTOENCODER_KIND, own.state_dict(), fields, {}, "card")
    document = config.model_dump(mode="json") | {"kind": "diffusion"}
    save_package(folder / "own", UNET_KIND, model.state_dict(), document, {}, "card", autoencoder=first)


def export(folder: Path, form: str) -> int:
    argv = ["export", str(folder / "own"), "--out", str(folder / "theirs"), "--format", form]
    return run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv)


@pytest.mark.parametrize(
    ("config", "first_stage"),
    [*((config, AUTOENCODER) for config in CONFIGS.values()), (BASE, KL)],
    ids=[*CONFIGS, "on a KL model"],
)
def test_diffusers_draws_the_same_pictures(
    tmp_path: Path, config: LatentDiffusionConfig, first_stage: AutoencoderConfig
) -> None:
    packaged(tmp_path, config, first_stage)
    assert export(tmp_path, "diffusers") == 0
    declare_missing_operators()
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel

    pipe = DiffusionPipeline.from_pretrained(tmp_path / "theirs", trust_remote_code=True)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert not [path for path in (tmp_path / "theirs").rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    generator = Generator.load(tmp_path / "own")
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(tokens.input_ids, generator.text.tokenize(PROMPTS))
    torch.testing.assert_close(pipe._encode([*PROMPTS, NULL_PROMPT]), generator.text.encode([*PROMPTS, NULL_PROMPT]))
    noise = generator._noise(Purpose.INITIAL_NOISE, [1, 2], 0, (4, 8, 8))
    drawn = pipe(PROMPTS, latents=noise, output_type="pt").images  # [B, 3, H, W] in [0, 1]
    own = torch.from_numpy(generator.sample(PROMPTS, [1, 2])).permute(0, 3, 1, 2)
    assert (to_uint8(drawn * 2 - 1).int() - own.int()).abs().max() <= 1
    latents = generator._sample_latents(PROMPTS, [1, 2], config.sampling, "", None, 1.0, (4, 8, 8))
    decoded = (generator.autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, decoded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("condition", [None, InpaintConfig()], ids=["plain", "inpaint"])
def test_compvis_names_hold_both_stages_and_lead_back(tmp_path: Path, condition: InpaintConfig | None) -> None:
    config = BASE.model_copy(update={"unet": COMPVIS_UNET, "condition": condition})
    packaged(tmp_path, config, COMPVIS_FIRST)
    assert export(tmp_path, "compvis") == 0
    weights = [path.name for path in (tmp_path / "theirs").rglob("*") if path.is_file() and path.stat().st_size > 9999]
    assert weights == ["model.safetensors"]
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    for name in ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"):
        assert name in theirs
    package = load_package(tmp_path / "own")
    own = {name.removeprefix("unet."): t for name, t in package.tensors().items() if name.startswith("unet.")}
    unet = restored(under(theirs, "model.diffusion_model."), list(own), COMPVIS_UNET, "compvis")
    assert own.keys() == unet.keys() and all(torch.equal(own[name], unet[name]) for name in own)
    assert package.autoencoder is not None
    first, back = package.autoencoder.tensors(), from_compvis(under(theirs, "first_stage_model."))
    assert all(torch.equal(first[name], back[name]) for name in back)
    assert "quantize.embedding.weight" in back
    assert {name for name in first if not name.startswith(("latent_", "quantize"))} <= back.keys()


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("config", "first_stage", "word"),
    [
        (BASE.model_copy(update={"unet": COMPVIS_UNET}), AUTOENCODER, "norm_groups"),
        (BASE, COMPVIS_FIRST, "unet.num_groups is 8"),
        (CONFIGS["linear, with places"], COMPVIS_FIRST, "position_code"),
        (MASKED, COMPVIS_FIRST, "text.mask_padding"),
    ],
)
def test_what_compvis_cannot_build_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: LatentDiffusionConfig,
    first_stage: AutoencoderConfig,
    word: str,
) -> None:
    packaged(tmp_path, config, first_stage)
    assert export(tmp_path, "compvis") == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_a_frozen_tower_is_written_up_to_its_layer(tmp_path: Path, layer: Literal["last", "penultimate"]) -> None:
    declare_missing_operators()
    import open_clip
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-S-32-alt", pretrained=None).state_dict(), tmp_path / "clip.pt")
    config = PretrainedTextConfig(name="ViT-S-32-alt", weights=str(tmp_path / "clip.pt"), layer=layer)
    tower = build_text_tower(config)
    (tmp_path / "text_encoder").mkdir()
    write_text_encoder(tower, tmp_path / "text_encoder")
    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    tokens = tower.tokenize(PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).last_hidden_state, tower(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"condition": UpscaleConfig()}, "upscale"),
        ({"text": MASKED.text}, "text.mask_padding"),
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
