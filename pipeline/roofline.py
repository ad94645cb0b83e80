"""What a run would do if each of its devices reached its peak all the time: the whole of which MFU is a share.

`pipeline.experiment` asks once, as a training starts, where the peak is known: of a GPU whose data sheet the plan has,
or by the config. `tessera plan` takes the networks of a step from here. Chowdhery et al., "PaLM: Scaling Language
Modeling with Pathways", 2022, appendix B, has the measure.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from pipeline.config import parse_config
from pipeline.data.dataset import DataConfig
from pipeline.data.shards import Manifest, load_manifest
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.pace import Peak
from pipeline.plan.estimate import GPUS
from pipeline.plan.measure import Part
from pipeline.plan.parts import autoencoder_parts, diffusion_parts
from pipeline.stages.autoencoder import AutoencoderStageConfig
from pipeline.stages.diffusion import DiffusionStageConfig

GPU_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
"""What torch calls a device, and its row in `GPUS`; other forms of these (H100 PCIe, H200 NVL, 4090 D) are slower."""


def peak_flops(device: torch.device, bf16: bool, peak_tflops: float | None) -> float | None:
    """Operations a second at the peak of `device`; None where nobody knows.

    Args:
        bf16: the peak with bf16 inputs, otherwise that of plain fp32.
        peak_tflops: what the config says; it wins.
    """
    if peak_tflops is not None:
        return peak_tflops * 1e12
    return peak_by_name(torch.cuda.get_device_name(device), bf16) if device.type == "cuda" else None


def peak_by_name(name: str, bf16: bool) -> float | None:
    """The same for a GPU, by what torch calls it."""
    if name not in GPU_NAMES:
        return None
    row = GPUS[GPU_NAMES[name]]
    return (row.bf16_tflops if bf16 else row.fp32_tflops) * 1e12


def peak_of_phases(
    stage: AutoencoderStageConfig | DiffusionStageConfig,
    bf16: bool,
    first: Mapping[str, Any] | None,
    phases: Sequence[tuple[DataConfig, int]],
    flops: float,
) -> Peak:
    """Images per second, if all devices had nothing but the FLOPs of forward and backward to do.

    Recomputation is no part of these, so gradient checkpointing lowers the MFU.

    Args:
        first: config of the first stage that a second one learns on.
        phases: data and number of samples of each.
        flops: operations a second of all devices together.
    """
    known = parse_config(first, AutoencoderConfig, "autoencoder") if first is not None else None
    peaks = []
    for data, _ in phases:
        manifest = None if data.order == "stream" else load_manifest(data.urls[0])
        peaks.append(flops / sum(part.flops for part in step_parts(stage, data.image_size, bf16, manifest, known)))
    ends = list(accumulate(num_samples for _, num_samples in phases[:-1]))
    return lambda samples_seen: peaks[bisect_right(ends, samples_seen)]


def step_parts(
    stage: AutoencoderStageConfig | DiffusionStageConfig,
    image_size: int,
    bf16: bool,
    manifest: Manifest | None,
    first: AutoencoderConfig | None,
) -> list[Part]:
    """The measured networks of one training step.

    Args:
        manifest: of the training data; it says what is stored and need not be computed, and of which size.
        first: what a second stage learns on.
    """
    if isinstance(stage, AutoencoderStageConfig):
        discriminator = stage.adversarial.discriminator if stage.adversarial else None
        perceptual = stage.reconstruction.perceptual_weight > 0
        return autoencoder_parts(stage.model, discriminator, perceptual, image_size, bf16)
    assert first is not None, "a second stage has a first"
    stamp = (manifest.stamp if manifest else None) or {}
    stored = {name for name, key in (("latents", "autoencoder_digest"), ("text", "text_digest")) if stamp.get(key)}
    return diffusion_parts(stage, first, stamp.get("image_size", image_size), frozenset(stored), bf16)
