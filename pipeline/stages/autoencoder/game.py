"""The discriminator's side of the first stage: its engine, its turn, and what it tells the generator.

Called by the stage once the game has begun.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.config import UserError
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.process import Process, all_reduce_mean
from pipeline.losses.adversarial import (
    LECAM_DECAY,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    lecam_penalty,
)
from pipeline.models.discriminator import FeatureDiscriminator, build_discriminator
from pipeline.stages.autoencoder.config import AdversarialConfig

ANCHORS = "lecam_anchors"
"""Buffer of the discriminator with LeCAM's averages, so that it is saved and restored with it."""

Metrics = dict[str, Tensor | float]


class Game:
    """The discriminator in training.

    Raises:
        UserError: R1 with ZeRO 3, which cannot go twice through a partitioned weight; frozen features without a file.
    """

    def __init__(self, config: AdversarialConfig, engine: EngineConfig, process: Process, seed: int) -> None:
        if config.r1_weight and engine.kind == "deepspeed" and engine.zero_stage == 3:
            raise UserError(f"adversarial.r1_weight is {config.r1_weight} with engine.zero_stage 3: use stage 2, or 0")
        self.config = config
        discriminator = build_discriminator(config.discriminator, seed)
        if isinstance(discriminator, FeatureDiscriminator):
            discriminator.load_features()
        if config.lecam_weight:
            discriminator.register_buffer(ANCHORS, torch.zeros(2))
        self.engine = build_engine(engine, "discriminator", discriminator, config.optim, process)

    def gradient_at(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss and its gradient at the picture [B, 3, H, W]; the discriminator stays as it is."""
        with _frozen(self.engine.module), self.engine.autocast():
            loss = generator_loss(self.engine(leaf), self.config.loss)
            (by_game,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), by_game

    def turn(self, images: Tensor, restored: Tensor, step: int, rate: float) -> Metrics:
        """One step of the discriminator on pictures and reconstructions, in one batch through one forward."""
        with self.engine.autocast():
            real, fake = self.engine(torch.cat([images, restored])).chunk(2)  # [B, 1, h, w] each
        terms = {"discriminator_loss": discriminator_loss(real, fake, self.config.loss)}
        if self.config.lecam_weight:
            penalty = lecam_penalty(real, fake, self._moved_anchors(real, fake))
            terms["lecam_loss"] = self.config.lecam_weight * penalty
        if self.config.r1_weight:
            terms["r1_loss"] = self._r1(images, step)
        self.engine.backward(torch.stack(list(terms.values())).sum())
        norm = self.engine.step(rate)
        return {name: term.detach() for name, term in terms.items()} | {
            "discriminator_gradient_norm": norm,
            "discriminator_accuracy": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()),
            "logit_of_pictures": real.detach().float().mean(),
            "logit_of_reconstructions": fake.detach().float().mean(),
        }

    def _r1(self, images: Tensor, step: int) -> Tensor:
        """R1 at its steps, 0 at the others; in float32, since slopes of slopes are small."""
        if step % self.config.r1_every_steps:
            return images.new_zeros(())
        return self.config.r1_weight * self.config.r1_every_steps * gradient_penalty(self.engine, images)

    @torch.no_grad()
    def _moved_anchors(self, real: Tensor, fake: Tensor) -> Tensor:
        """The averages after this batch, the same on all ranks."""
        anchors: Tensor = self.engine.module.get_buffer(ANCHORS)
        means = all_reduce_mean(torch.stack([real.float().mean(), fake.float().mean()]))
        return anchors.lerp_(means, 1 - LECAM_DECAY)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of `module` takes a gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
