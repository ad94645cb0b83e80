"""Names of the autoencoder's tensors in other projects.

Our own names are CompVis' names for everything that both have, so that map only drops and adds; the others are reached
by renaming module by module. The way back is the same map read backwards, so no tensor can be lost. Called through
`pipeline.models.convert`.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import UserError
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.quantizers.codebook import CodebookConfig

OWN_BUFFERS = ("latent_mean", "latent_std", "quantize.active", "quantize.embedding.counts", "quantize.embedding.sums")
"""Tensors of ours that the other layouts lack."""
CODES = "quantize.embedding.weight"
COMPVIS_GROUPS = 32
"""Groups of every GroupNorm in CompVis' and LlamaGen's code, fixed there."""
TRAINING_ONLY = ("loss.", "model_ema.", "colorize")
"""Beginnings of the names in a CompVis checkpoint that are no part of the autoencoder."""
LLAMAGEN_USAGE = ("quantize.codebook_used", 65536)
"""A buffer there, and its size: the codes of the last batches."""

_LEVEL = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(.+)")
_DIFFUSERS_MODULES = {
    r"block\.(\d+)": r"resnets.\1",
    r"attn\.(\d+)": r"attentions.\1",
    r"(down|up)sample\.conv": r"\1samplers.0.conv",
    r"mid\.block_1": "mid_block.resnets.0",
    r"mid\.block_2": "mid_block.resnets.1",
    r"mid\.attn_1": "mid_block.attentions.0",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
}
_LLAMAGEN_MODULES = {
    r"block\.(\d+)": r"res.\1",
    r"mid\.block_1": "mid.0",
    r"mid\.attn_1": "mid.1",
    r"mid\.block_2": "mid.2",
}
_PROJECTION = re.compile(r"(.*attn[._]\d+\.)(norm|q|k|v|proj_out)\.(weight|bias)")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in diffusers' checkpoints of before its attention was rewritten."""


def to_compvis(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """State dict of latent-diffusion's VQModel or AutoencoderKL from ours.

    Raises:
        UserError: the network has another number of groups than their code, or codes that they cannot have.
    """
    if config.norm_groups != COMPVIS_GROUPS:
        raise UserError(f"norm_groups is {config.norm_groups}: CompVis' code has {COMPVIS_GROUPS}; export to diffusers")
    return _plain_codes(tensors, config)


def from_compvis(state: Mapping[str, Tensor], averaged: bool = False) -> dict[str, Tensor]:
    """Weights for our Autoencoder from the `state_dict` of a CompVis checkpoint; VQ for a `gradient` codebook.

    Load with strict=False: the statistics of the latents keep their start and are set by the next validation. A
    VQ checkpoint of theirs was trained with the `legacy` loss and without `cosine`.

    Args:
        averaged: take the moving averages, where the checkpoint has them (their names have lost the dots).
    """
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(TRAINING_ONLY)}
    if averaged:
        weights = {name: state.get(f"model_ema.{name.replace('.', '')}", tensor) for name, tensor in weights.items()}
    return weights


def to_diffusers(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """State dict of diffusers' VQModel or AutoencoderKL, built from `diffusers_config`, from ours."""
    rename = _diffusers_name(len(config.channel_multipliers))
    return {
        rename(name): tensor[:, :, 0, 0].contiguous() if _is_projection(name, tensor) else tensor
        for name, tensor in _plain_codes(tensors, config).items()
    }


def from_diffusers(state: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Weights for our Autoencoder of `config` from diffusers' state dict; see `from_compvis` for how to load them.

    Raises:
        UserError: a tensor is missing, left over or of another shape: `config` is of another network.
    """
    current = {
        re.sub(r"\b(query|key|value|proj_attn)\b", lambda match: _OLD_ATTENTION[match[1]], name): tensor
        for name, tensor in state.items()
    }
    return _read_backwards(current, config, _diffusers_name(len(config.channel_multipliers)))


def to_llamagen(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """State dict of LlamaGen's tokenizer (`model` of its files) from ours.

    Raises:
        UserError: groups or attention that their code does not have.
    """
    levels = range(len(config.channel_multipliers))
    if config.norm_groups != COMPVIS_GROUPS or [i for i in levels if config.attends(i)] != [levels[-1]]:
        raise UserError(f"LlamaGen's code has {COMPVIS_GROUPS} norm_groups, and attention at the last level alone")
    rename = _llamagen_name(len(levels))
    renamed = {rename(name): tensor for name, tensor in _plain_codes(tensors, config).items()}
    return renamed | {LLAMAGEN_USAGE[0]: torch.zeros(LLAMAGEN_USAGE[1])}


def from_llamagen(state: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Weights for our Autoencoder of `config` (cosine codes) from LlamaGen's; raises as `from_diffusers`."""
    kept = {name: tensor for name, tensor in state.items() if name != LLAMAGEN_USAGE[0]}
    return _read_backwards(kept, config, _llamagen_name(len(config.channel_multipliers)))


def _read_backwards(
    state: Mapping[str, Tensor], config: AutoencoderConfig, rename: Callable[[str], str]
) -> dict[str, Tensor]:
    """Our tensors by our names; each has to be there, in a shape of as many numbers, and nothing else."""
    ours = {name: tensor for name, tensor in Autoencoder(config).state_dict().items() if name not in OWN_BUFFERS}
    theirs = {name: rename(name) for name in ours}
    missing, unknown = set(theirs.values()) - set(state), set(state) - set(theirs.values())
    if missing or unknown:
        raise UserError(
            f"another network than the config's: missing {sorted(missing)[:3]}, not ours {sorted(unknown)[:3]}"
        )
    for name, tensor in ours.items():
        if state[theirs[name]].numel() != tensor.numel():
            shapes = f"{tuple(state[theirs[name]].shape)}, the config says {tuple(tensor.shape)}"
            raise UserError(f"{theirs[name]}: {shapes}")
    return {name: state[theirs[name]].reshape(tensor.shape) for name, tensor in ours.items()}


def _plain_codes(tensors: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Without our own buffers, and with codes as a plain table: of unit length for `cosine`, mapped for SimVQ."""
    quantizer = config.quantizer
    if not (isinstance(quantizer, CodebookConfig) or quantizer.kind == "kl"):
        raise UserError(f"quantizer {quantizer.kind}: the other code has one table of codes only; export it natively")
    if not tensors.get("quantize.active", torch.tensor(True)):
        raise UserError("the codebook has not been placed yet: train beyond quantizer.start_step")
    kept = {name: tensor for name, tensor in tensors.items() if name not in OWN_BUFFERS}
    if quantizer.kind == "simvq":
        base, weight, bias = (
            kept.pop(f"quantize.embedding.{n}") for n in ("base", "projection.weight", "projection.bias")
        )
        kept[CODES] = F.linear(base, weight, bias)
    if isinstance(quantizer, CodebookConfig) and quantizer.cosine:
        kept[CODES] = F.normalize(kept[CODES], dim=1)  # among unit codes the nearest is the most similar
    return kept


def _is_projection(name: str, tensor: Tensor) -> bool:
    """A 1x1 convolution of an attention, which diffusers keeps as a matrix."""
    return bool(_PROJECTION.fullmatch(name)) and tensor.dim() == 4


def _diffusers_name(num_levels: int) -> Callable[[str], str]:
    """Our name -> diffusers'; the levels of their decoder count from the coarsest."""

    def rename(name: str) -> str:
        if match := _PROJECTION.fullmatch(name):
            name = f"{match[1]}{_ATTENTION[match[2]]}.{match[3]}"
        if match := _LEVEL.fullmatch(name):
            way = "down" if match[1] == "encoder" else "up"
            name = f"{match[1]}.{way}_blocks.{_level(match, num_levels)}.{match[3]}"
        return _replaced(name, _DIFFUSERS_MODULES)

    return rename


def _llamagen_name(num_levels: int) -> Callable[[str], str]:
    """Our name -> LlamaGen's; the levels of their decoder count from the coarsest."""

    def rename(name: str) -> str:
        if match := _LEVEL.fullmatch(name):
            name = f"{match[1]}.conv_blocks.{_level(match, num_levels)}.{match[3]}"
        return _replaced(name, _LLAMAGEN_MODULES)

    return rename


def _level(match: re.Match[str], num_levels: int) -> int:
    level = int(match[2])
    return level if match[1] == "encoder" else num_levels - 1 - level


def _replaced(name: str, modules: Mapping[str, str]) -> str:
    for ours, theirs in modules.items():
        name = re.sub(rf"\b{ours}\b", theirs, name)
    return name
