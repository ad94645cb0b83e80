"""Small first stages for tests: the engines, the pictures, training steps."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process, start
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.discriminator import DiscriminatorConfig
from pipeline.optim import OptimConfig
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.stages.autoencoder import AdversarialConfig, AutoencoderStage, AutoencoderStageConfig

ENGINES = {
    "accelerate": EngineConfig(kind="accelerate"),
    "zero0": EngineConfig(zero_stage=0),
    "zero1": EngineConfig(zero_stage=1),
    "zero2": EngineConfig(zero_stage=2),
    "zero3": EngineConfig(zero_stage=3, persistence_threshold=0),
}
OPTIM = OptimConfig(learning_rate=1e-3, eps=1e-3)  # a large eps keeps rounding from flipping steps of tiny gradients
GRADIENT, MOVING = GradientCodebookConfig(num_codes=16), EmaCodebookConfig(num_codes=16, revive_every_steps=2)
GLOBAL_BATCH, SEED = 4, 3


def stage_config(start_step: int | None = 1, quantizer: object = GRADIENT) -> AutoencoderStageConfig:
    model = AutoencoderConfig(
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        norm_groups=2,
        latent_channels=4,
        embedding_dim=4,
        resolution=16,
        quantizer=quantizer,
    )
    game = None
    if start_step is not None:
        shape = DiscriminatorConfig(channels=8, num_layers=2, norm_groups=2)
        game = AdversarialConfig(weight=0.75, start_step=start_step, discriminator=shape, optim=OPTIM)
    return AutoencoderStageConfig(
        model=model, reconstruction=ReconstructionConfig(l2_weight=0.5, perceptual_weight=0), adversarial=game
    )


def make_stage(config: AutoencoderStageConfig, engine: str = "accelerate", precision: str = "fp32") -> AutoencoderStage:
    wanted = ENGINES[engine].model_copy(update={"precision": precision})
    return AutoencoderStage(config, wanted, OPTIM, start(), SEED)


def batch_of(images: Tensor, sample_ids: Sequence[int] | None = None) -> Batch:
    count = len(images)
    return Batch(list(sample_ids or range(count)), [0] * count, [""] * count, [""] * count, images=images)


def global_images(step: int, count: int = GLOBAL_BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def sample_ids(step: int) -> range:
    return range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)


def train(stage: AutoencoderStage, steps: range, process: Process) -> list[dict[str, float]]:
    """Metrics of each step on this rank's part of the global batches."""
    rows = []
    for step in steps:
        mine = slice(process.rank, None, process.world_size)  # as the loader deals them
        batch = batch_of(global_images(step)[mine], sample_ids(step)[mine])
        metrics = stage.train_step(batch, step, step * GLOBAL_BATCH, 1000)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def masters(stage: AutoencoderStage) -> dict[str, np.ndarray]:
    """Every piece of the weights of both engines that this rank holds, by engine, name and offset."""
    engines = [stage.generator, *([stage.game.engine] if stage.game else [])]
    return {f"{e.name}.{p.name}.{p.offset}": p.master.numpy().copy() for e in engines for p in e.pieces}


def largest_error(pieces: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> float:
    errors = []
    for name, piece in pieces.items():
        parameter, _, offset = name.rpartition(".")
        expected = whole[parameter][int(offset) : int(offset) + len(piece)]
        errors.append(np.abs(piece - expected).max(initial=0.0))
    return max(errors)
