"""Small first stages for tests: the engines, the pictures, training steps, and the same step in plain torch."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process, start
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.discriminator import Discriminator, DiscriminatorConfig
from pipeline.optim import OptimConfig, build_optimizer
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
GLOBAL_BATCH = 4


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
    return AutoencoderStage(config, wanted, OPTIM, start(), seed=3)


def batch_of(images: Tensor) -> Batch:
    count = len(images)
    return Batch(list(range(count)), [0] * count, [""] * count, [""] * count, images=images)


def global_images(step: int, count: int = GLOBAL_BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def train(stage: AutoencoderStage, steps: range, process: Process) -> list[dict[str, float]]:
    """Metrics of each step on this rank's part of the global batches."""
    rows = []
    for step in steps:
        images = global_images(step)[process.rank :: process.world_size]  # as the loader deals them
        metrics = stage.train_step(batch_of(images), step, step * GLOBAL_BATCH, 1000)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def masters(stage: AutoencoderStage) -> dict[str, np.ndarray]:
    """Every piece of the weights of both engines that this rank holds, by engine, name and offset."""
    engines = [stage.generator, *([stage.game.engine] if stage.game else [])]
    return {f"{e.name}.{p.name}.{p.offset}": p.master.numpy().copy() for e in engines for p in e.pieces}


def plain_vqgan(
    config: AutoencoderStageConfig, steps: int, precision: str = "fp32"
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Equation by equation, lambda by autograd on the last weight itself: the weights and the lambdas."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return _plain_vqgan(config, steps)


def _plain_vqgan(config: AutoencoderStageConfig, steps: int) -> tuple[dict[str, np.ndarray], list[float]]:
    assert config.adversarial
    model, critic = Autoencoder(config.model, 3), Discriminator(config.adversarial.discriminator, 3)
    optimizers = build_optimizer(OPTIM, model), build_optimizer(OPTIM, critic)
    lambdas = []
    for step in range(steps):
        x = to_model(global_images(step))
        result = model(x)
        nll = F.l1_loss(result.images, x) + 0.5 * F.mse_loss(result.images, x)
        loss = nll + sum(result.quantized.losses.values())
        if step >= config.adversarial.start_step:
            game = -critic(result.images).mean()
            weight = model.decoder.conv_out.weight
            of_nll, of_game = (torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in (nll, game))
            lambdas.append((of_nll / (of_game + 1e-4)).item())
            loss = loss + config.adversarial.weight * lambdas[-1] * game
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        if step >= config.adversarial.start_step:
            optimizers[1].zero_grad()
            real, fake = critic(x), critic(result.images.detach())
            (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
            optimizers[1].step()
    named = [*((f"autoencoder.{n}", p) for n, p in model.named_parameters())]
    named += [(f"discriminator.{n}", p) for n, p in critic.named_parameters()]
    return {name: parameter.detach().flatten().numpy() for name, parameter in named}, lambdas


def largest_error(pieces: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> float:
    errors = []
    for name, piece in pieces.items():
        parameter, _, offset = name.rpartition(".")
        expected = whole[parameter][int(offset) : int(offset) + len(piece)]
        errors.append(np.abs(piece - expected).max(initial=0.0))
    return max(errors)
