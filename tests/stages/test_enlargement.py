"""Both stages, trained for two minutes to make drawn shapes four times larger: better than bicubic interpolation."""

import copy

import numpy as np
import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.data.shapes import captions_of, draw_shape
from pipeline.diffusion.objective import ObjectiveConfig
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.diffusion.schedule import ScheduleConfig
from pipeline.distributed.ema import EmaConfig
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import start
from pipeline.generate import Generator
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.condition import UpscaleConfig
from pipeline.models.text import TrainableTextConfig
from pipeline.optim import OptimConfig
from pipeline.quantizers.lattice import FsqConfig
from pipeline.stages.autoencoder import AutoencoderStage, AutoencoderStageConfig
from pipeline.stages.diffusion import DiffusionStage, DiffusionStageConfig
from pipeline.stages.diffusion_evaluation import UNetMeter
from tests.small_models import small_autoencoder, small_unet

SIDE, BATCH, FIRST_STEPS, SECOND_STEPS = 32, 16, 700, 400
AVERAGE = EmaConfig(decay=0.98)
ENGINE = EngineConfig(kind="accelerate")
FIRST = AutoencoderStageConfig(
    model=small_autoencoder(channels=16, norm_groups=1, resolution=SIDE, quantizer=FsqConfig(levels=(32, 32, 32, 32))),
    reconstruction=ReconstructionConfig(l1_weight=0.1, l2_weight=1.0, edge_weight=4.0, perceptual_weight=0),
    ema=AVERAGE,
)
SECOND = DiffusionStageConfig(
    unet=small_unet(channels=32),
    text=TrainableTextConfig(width=16, num_layers=1, num_heads=2, context_length=16),
    condition=UpscaleConfig(factor=4),
    objective=ObjectiveConfig(prediction="x0", schedule=ScheduleConfig(zero_terminal_snr=True)),
    sampling=SamplingConfig(sampler="ddim", num_steps=4, guidance_scale=1.0),
    ema=AVERAGE,
    preview_prompts=("a red circle",),
)


def drawings(sample_ids: range, split: str) -> Batch:
    drawn = [draw_shape(0, i, SIDE, captions_of(split)) for i in sample_ids]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    keys = [str(i) for i in sample_ids]
    return Batch(list(sample_ids), [0] * len(keys), keys, [caption for _, caption in drawn], images=images)


def train(stage: AutoencoderStage | DiffusionStage, steps: int) -> None:
    for step in range(steps):
        batch = drawings(range(step * BATCH, (step + 1) * BATCH), "train")
        stage.train_step(batch, step, step * BATCH, steps * BATCH)


def adam(learning_rate: float) -> OptimConfig:
    return OptimConfig(learning_rate=learning_rate, betas=(0.9, 0.99), warmup_samples=320, decay="cosine")


def trained_first_stage(held_out: Batch) -> Autoencoder:
    stage = AutoencoderStage(FIRST, ENGINE, adam(3e-3), start(), 0)
    train(stage, FIRST_STEPS)
    assert stage.validate([held_out])["validation_psnr"] > 28
    with stage.ema.applied():
        return copy.deepcopy(stage.model).eval()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_enlargement_is_nearer_to_the_original_than_bicubic() -> None:
    held_out = drawings(range(64), "held-out")
    stage = DiffusionStage(SECOND, ENGINE, adam(2e-3), start(), 0, trained_first_stage(held_out))
    train(stage, SECOND_STEPS)
    with stage.ema.applied():
        stage.model.eval()
        networks = stage.model, stage.text, stage.objective, SECOND.sampling, stage.autoencoder
        meter = UNetMeter(Generator(*networks, condition=SECOND.condition))
        meter.measure([held_out])
    figures = meter.compute()
    assert figures["psnr"] > figures["psnr_bicubic"] + 1.0, figures
