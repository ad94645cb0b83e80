"""An autoencoder as diffusers and as CompVis' code read it; the latents' statistics lie beside, neither has a place.

Both computed from the state-dict maps of `pipeline.models.convert`. Called through `pipeline.formats`.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.package import Package
from pipeline.config import parse_config
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.convert import compvis_config, diffusers_config, to_compvis, to_diffusers
from pipeline.storage import write_bytes, write_json

STATISTICS = "latent_statistics.json"
"""Mean and standard deviation of each latent channel: (latent - mean) / std is what a second stage of ours learns."""


def write_diffusers(package: Package, folder: Path) -> None:
    """`config.json` and `diffusion_pytorch_model.safetensors`, for `from_pretrained` of VQModel or AutoencoderKL."""
    config, tensors = _opened(package)
    arguments, weights = diffusers_config(config), to_diffusers(tensors, config)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", arguments)
    _write_statistics(tensors, folder)


def write_compvis(package: Package, folder: Path) -> None:
    """`model.ckpt` with a `state_dict`, and the `config.yaml` that taming-transformers and latent-diffusion build from.

    A PyTorch file, because their code opens nothing else; it holds tensors alone.
    """
    config, tensors = _opened(package)
    document, weights = compvis_config(config), to_compvis(tensors, config)
    torch.save({"state_dict": weights}, folder / "model.ckpt")
    write_bytes(folder / "config.yaml", yaml.safe_dump(document, sort_keys=False).encode())
    _write_statistics(tensors, folder)


def _opened(package: Package) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    return parse_config(package.config, AutoencoderConfig, source=str(package.folder)), package.tensors()


def _write_statistics(tensors: dict[str, Tensor], folder: Path) -> None:
    values: dict[str, Any] = {name: tensors[f"latent_{name}"].tolist() for name in ("mean", "std")}
    write_json(folder / STATISTICS, values)
