"""A latent UNet as diffusers and as CompVis' code read it. Called through `pipeline.formats`.

The diffusers folder is a whole pipeline: UNet, first stage, scheduler, text tower, tokenizer, and a `pipeline.py` of
one page, since none of diffusers' own pipelines knows normalised VQ latents or a place code. Weights are safetensors
alone.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.package import Package
from pipeline.config import UserError
from pipeline.diffusion.schedule import build_schedule
from pipeline.formats.autoencoder import write_diffusers as write_autoencoder
from pipeline.formats.text import write_text_encoder, write_tokenizer
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.convert import to_compvis
from pipeline.models.convert_unet import diffusers_config, renamed
from pipeline.models.latent_diffusion import LatentDiffusionConfig
from pipeline.models.packaged import load_latent_diffusion
from pipeline.storage import write_bytes, write_json

COMPVIS_GROUPS = 32
"""Groups of every normalisation in CompVis' code."""
PIPELINE = "diffusers_pipeline.py.j2"
_BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def write_diffusers(package: Package, folder: Path) -> None:
    """`diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` opens it.

    Raises:
        UserError: a condition or an objective that diffusers' scheduler or UNet has no place for.
    """
    config, model, text = load_latent_diffusion(package)
    first = package.autoencoder
    assert first is not None
    _refuse(config, package)
    statistics = first.tensors()
    side = int(first.config["resolution"]) // 2 ** (len(first.config["channel_multipliers"]) - 1)
    for name in ("unet", "scheduler", "text_encoder", "tokenizer", "vqvae"):
        (folder / name).mkdir()
    weights = renamed(model.unet.state_dict(), config.unet, "diffusers")
    _save(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    write_json(folder / "unet" / "config.json", diffusers_config(config.unet, config.unet.latent_channels, side))
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(config))
    write_autoencoder(first, folder / "vqvae")
    write_text_encoder(text, folder / "text_encoder")
    write_tokenizer(text, folder / "tokenizer")
    template = jinja2.Template((Path(__file__).parent / PIPELINE).read_text(), undefined=jinja2.StrictUndefined)
    page = template.render(
        latent_mean=statistics["latent_mean"].tolist(),
        latent_std=statistics["latent_std"].tolist(),
        position_code=config.unet.position_code,
        side=side,
        sampling=config.sampling,
        guided=[share * (config.objective.schedule.num_timesteps - 1) for share in config.sampling.guidance_interval],
    )
    write_bytes(folder / "pipeline.py", page.encode())
    first_stage = json.loads((folder / "vqvae" / "config.json").read_text())["_class_name"]  # VQModel or AutoencoderKL
    write_json(folder / "model_index.json", _INDEX | {"vqvae": ["diffusers", first_stage]})


def write_compvis(package: Package, folder: Path) -> None:
    """`model.safetensors` with the names of a Stable Diffusion checkpoint: UNet and first stage, no text tower.

    Raises:
        UserError: a UNet or an autoencoder that their code cannot build.
    """
    config, model, _ = load_latent_diffusion(package)
    first = package.autoencoder
    assert first is not None
    if config.text.mask_padding:
        raise UserError(f"{package.folder}: text.mask_padding has no place in CompVis' UNet")
    if config.unet.position_code:
        raise UserError(f"{package.folder}: unet.position_code has no place in CompVis' UNet; export it to diffusers")
    if config.unet.num_groups != COMPVIS_GROUPS:
        raise UserError(
            f"{package.folder}: unet.num_groups is {config.unet.num_groups}, CompVis' UNet always has {COMPVIS_GROUPS}"
        )
    unet = renamed(model.unet.state_dict(), config.unet, "compvis")
    autoencoder = to_compvis(first.tensors(), AutoencoderConfig(**first.config))
    names = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    names |= {f"first_stage_model.{name}": tensor for name, tensor in autoencoder.items()}
    _save(names, folder / "model.safetensors")


def _refuse(config: LatentDiffusionConfig, package: Package) -> None:
    """What the pipeline cannot sample as we do."""
    if config.condition is not None:
        raise UserError(f"{package.folder}: a model with condition {config.condition.kind} has no diffusers format")
    if config.text.mask_padding:
        raise UserError(f"{package.folder}: text.mask_padding has no diffusers format; export it without --format")
    kind, prediction = config.objective.schedule.kind, config.objective.prediction
    if kind not in _BETAS or prediction not in _PREDICTIONS:
        raise UserError(
            f"{package.folder}: a {kind} schedule (prediction {prediction}) has no scheduler in the diffusers format;"
            " export it without --format"
        )


def _scheduler(config: LatentDiffusionConfig) -> dict[str, Any]:
    """DDIM, which equals ours for every step count that divides the table; their DPM++ clips zero-terminal
    schedules."""
    schedule = config.objective.schedule
    betas = {
        "beta_schedule": _BETAS[schedule.kind],
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    }
    if schedule.shift != 1.0:  # of which they know nothing
        abar = build_schedule(schedule).alphas_cumprod  # float64 [num_timesteps]
        betas = {"trained_betas": (1.0 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])).tolist()}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.num_timesteps,
        **betas,
        "prediction_type": _PREDICTIONS[config.objective.prediction],
        "timestep_spacing": config.sampling.spacing,
        "steps_offset": int(config.sampling.spacing == "leading"),
        "clip_sample": False,
        "set_alpha_to_one": True,
    }


_INDEX = {
    "_class_name": ["pipeline", "TesseraPipeline"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    own = {name: tensor.detach().to(torch.float32).contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})
