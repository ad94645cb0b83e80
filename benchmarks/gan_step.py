"""One whole GAN step of the first stage, beside the formulation of taming-transformers in the same code.

There the autoencoder runs once for each optimizer, and the adaptive weight takes two backward passes through the graph
to the last weight; here one forward and one backward serve both. The same networks, batch and optimizers; no
perceptual term, whose cost both would share.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model
from pipeline.distributed import process as processes
from pipeline.distributed.engine import EngineConfig
from pipeline.losses.adversarial import EPSILON, discriminator_loss
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.discriminator import Discriminator, DiscriminatorConfig
from pipeline.optim import OptimConfig, build_optimizer
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.stages.autoencoder import AdversarialConfig, AutoencoderStage, AutoencoderStageConfig

BATCH, SIZE = 4, 64
MODEL = AutoencoderConfig(
    channels=32,
    resolution=SIZE,
    latent_channels=4,
    embedding_dim=4,
    quantizer=GradientCodebookConfig(num_codes=1024, cosine=False),
)
CRITIC = DiscriminatorConfig(channels=32)
OPTIM = OptimConfig(learning_rate=1e-4)


def races() -> list[Result]:
    """Steps a second of both."""
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    sides = [Side("ours, the leaf method", _ours(images)), Side("taming's formulation", _taming(images))]
    result = race(f"GAN step, {BATCH} pictures of {SIZE} px", "steps/s", sides, num_rounds=7)
    processes.finish()
    return [result]


def _ours(images: torch.Tensor) -> Callable[[Stopwatch], int]:
    config = AutoencoderStageConfig(
        model=MODEL,
        reconstruction=ReconstructionConfig(perceptual_weight=0),
        adversarial=AdversarialConfig(weight=0.75, discriminator=CRITIC, optim=OPTIM),
    )
    stage = AutoencoderStage(config, EngineConfig(kind="accelerate"), OPTIM, processes.start(), seed=0)
    names = [""] * BATCH
    batch = Batch(list(range(BATCH)), [0] * BATCH, names, names, images=images)

    def run(watch: Stopwatch) -> int:
        with watch.running():
            stage.train_step(batch, 1, 0, 1000)
        return 1

    return run


def _taming(images: torch.Tensor) -> Callable[[Stopwatch], int]:
    model, critic = Autoencoder(MODEL).train(), Discriminator(CRITIC)
    optimizers = build_optimizer(OPTIM, model), build_optimizer(OPTIM, critic)
    last = model.decoder.conv_out.weight

    def run(watch: Stopwatch) -> int:
        with watch.running():
            x = to_model(images).contiguous(memory_format=torch.channels_last)
            result = model(x)
            nll, game = F.l1_loss(result.images, x), -critic(result.images).mean()
            norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, game)]
            weight = (norms[0] / (norms[1] + EPSILON)).clamp(0, 1e4).detach()
            optimizers[0].zero_grad()
            (nll + 0.75 * weight * game + sum(result.quantized.losses.values())).backward()
            optimizers[0].step()
            result = model(x)  # the training step of the second optimizer begins anew
            optimizers[1].zero_grad()
            discriminator_loss(critic(x), critic(result.images.detach())).backward()
            optimizers[1].step()
        return 1

    return run
