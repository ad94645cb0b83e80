"""First stage: trains the VQ autoencoder, alone or against a discriminator, under any engine and ZeRO stage.

The generator is trained by the leaf method: the gradients of all picture losses are taken at a detached
reconstruction, the adaptive weight is computed from them, and exactly one engine backward carries their sum through
the network (one pass, where the usual way takes three, and no autograd pass meets a partitioned weight).
Implements the trainer's `Stage`; built by `pipeline.experiment`.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model, to_uint8
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, all_reduce_mean
from pipeline.evaluate.reconstruction import CodebookMeter, LatentMeter, PictureMeter
from pipeline.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from pipeline.losses.reconstruction import ReconstructionConfig, ReconstructionLoss
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig, Reconstruction
from pipeline.models.discriminator import Discriminator, DiscriminatorConfig
from pipeline.optim import OptimConfig, learning_rate_at

NUM_SHOWN = 8
"""Pictures of a preview."""
COLLAPSED_SHARE = 0.1
"""Share of the codes in use below which validation warns."""

log = logging.getLogger(__name__)


class AdversarialConfig(Config):
    """The game against a discriminator."""

    weight: float = Field(default=0.75, gt=0)
    """Weight of the generator's part, on top of the adaptive weight."""
    start_step: int = Field(default=0, ge=0)
    """Generator step at which the game begins; before it the discriminator is neither run nor trained."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Its shape."""
    optim: OptimConfig = OptimConfig(betas=(0.5, 0.9))
    """Its optimizer; the schedule counts the samples of the run, as the generator's does."""


class AutoencoderStageConfig(Config):
    """The first stage."""

    kind: Literal["autoencoder"] = "autoencoder"
    """Chooses this stage."""
    model: AutoencoderConfig = AutoencoderConfig()
    """The autoencoder."""
    reconstruction: ReconstructionConfig
    """What draws a reconstruction to its picture."""
    adversarial: AdversarialConfig | None = None
    """The game; null trains without one."""
    ema: EmaConfig = EmaConfig()
    """Average of the weights: it is validated, shown and exported."""


class AutoencoderStage:
    """The autoencoder, its discriminator, their engines and the average of the weights."""

    def __init__(
        self, config: AutoencoderStageConfig, engine: EngineConfig, optim: OptimConfig, process: Process, seed: int
    ) -> None:
        self.config, self.optim, self.device = config, optim, process.device
        self.model = Autoencoder(config.model, seed)
        self.last_conv = self.model.decoder.conv_out
        self.reconstruction = ReconstructionLoss(config.reconstruction).to(process.device)
        self.generator = build_engine(engine, "autoencoder", self.model, optim, process)
        self.ema = Ema(self.generator, config.ema)
        self.adversary = None
        if config.adversarial:
            discriminator = Discriminator(config.adversarial.discriminator, seed)
            self.adversary = build_engine(engine, "discriminator", discriminator, config.adversarial.optim, process)
        self.shown: Tensor | None = None

    def parts(self) -> dict[str, Stateful]:
        """The engines by name, and `ema`."""
        parts: dict[str, Stateful] = {"autoencoder": self.generator, "ema": self.ema}
        return parts | ({"discriminator": self.adversary} if self.adversary else {})

    def train_step(self, batch: Batch, step: int, samples_seen: int, total_samples: int) -> dict[str, Tensor | float]:
        """The generator's turn and, once the game has begun, the discriminator's on the same pictures."""
        images = self._images(batch)
        self.shown = images[:NUM_SHOWN]
        self.model.train()
        restored, metrics = self.generator_turn(images, step, learning_rate_at(self.optim, samples_seen, total_samples))
        if self._in_game(step):
            assert self.config.adversarial is not None
            rate = learning_rate_at(self.config.adversarial.optim, samples_seen, total_samples)
            metrics |= self.discriminator_turn(images, restored, rate)
        return metrics

    def generator_turn(self, images: Tensor, step: int, rate: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """One step of the autoencoder, its average and its codebook; the reconstructions, detached, and the metrics."""
        with self.generator.autocast():
            result: Reconstruction = self.generator(images)
        direction, metrics = self._picture_gradient(images, result, step)
        # The gradient of this product at the picture is `direction`, that of all picture losses together.
        surrogate = (result.images * direction).sum()
        self.generator.backward(surrogate + torch.stack(list(result.quantized.losses.values())).sum())
        metrics["gradient_norm"] = self.generator.step(rate)
        self.ema.update()
        self.model.quantize.update(result.latent.detach(), result.quantized.codes, step)
        metrics |= {name: loss.detach() for name, loss in result.quantized.losses.items()}
        metrics |= {"batch_perplexity": result.quantized.perplexity, "learning_rate": rate}
        return result.images.detach(), metrics

    def discriminator_turn(self, images: Tensor, restored: Tensor, rate: float) -> dict[str, Tensor | float]:
        """One step of the discriminator on pictures and reconstructions, in one batch through one forward."""
        assert self.adversary is not None
        with self.adversary.autocast():
            real, fake = self.adversary(torch.cat([images, restored])).chunk(2)  # [B, 1, h, w] each
        loss = discriminator_loss(real, fake)
        self.adversary.backward(loss)
        norm = self.adversary.step(rate)
        return {
            "discriminator_loss": loss.detach(),
            "discriminator_gradient_norm": norm,
            "logit_of_pictures": real.detach().float().mean(),
            "logit_of_reconstructions": fake.detach().float().mean(),
        }

    def _picture_gradient(
        self, images: Tensor, result: Reconstruction, step: int
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Gradient of all picture losses at the reconstruction [B, 3, H, W], and the losses by name."""
        leaf = result.images.detach().requires_grad_()
        with self.generator.autocast():
            terms = self.reconstruction(leaf, images)
        (direction,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), leaf)
        metrics: dict[str, Tensor | float] = {name: term.detach() for name, term in terms.items()}
        if self._in_game(step):
            assert self.config.adversarial is not None
            loss, by_game = self._game_gradient(leaf)
            weight = adaptive_weight(result.last_hidden, self.last_conv, direction, by_game, all_reduce_mean)
            scale = self.config.adversarial.weight * weight
            direction = direction + scale * by_game
            metrics |= {"generator_loss": scale * loss, "adaptive_weight": weight}
        return direction, metrics

    def _game_gradient(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss in the game and its gradient at the reconstruction; the discriminator stays as it is."""
        assert self.adversary is not None
        with _frozen(self.adversary.module), self.adversary.autocast():
            loss = generator_loss(self.adversary(leaf))
            (by_game,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), by_game

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Quality, codebook use over one pass with the averaged weights; sets the latents' mean and std. Collective."""
        pictures = PictureMeter(self.device)
        codebook = CodebookMeter(self.model.quantize.num_codes, self.device)
        latents = LatentMeter(self.config.model.embedding_dim, self.device)
        with self._averaged():
            for batch in batches:
                images = self._images(batch)
                result = self._restore(images)
                pictures.update(to_uint8(result.images), to_uint8(images))
                codebook.update(result.quantized.codes)
                latents.update(result.latent)
        mean, std = latents.compute()
        self.model.latent_mean.copy_(mean)
        self.model.latent_std.copy_(std)
        values = pictures.compute() | codebook.compute()
        if values["codebook_usage"] < COLLAPSED_SHARE:
            log.warning(
                "the codebook has collapsed: %.1f %% of the codes in use; take fewer codes, cosine: true or kind: ema",
                100 * values["codebook_usage"],
            )
        return {f"validation_{name}": value for name, value in values.items()}

    def preview(self) -> np.ndarray:
        """Pictures of the last batch of rank 0 above their reconstructions, uint8 [2 H, n W, 3]. Collective."""
        assert self.shown is not None, "a preview shows pictures of a training step"
        with self._averaged():
            restored = self._restore(self.shown).images
        rows = [torch.cat(list(to_uint8(images)), dim=2) for images in (self.shown, restored)]  # [3, H, n W]
        return torch.cat(rows, dim=1).permute(1, 2, 0).cpu().numpy()

    def _restore(self, images: Tensor) -> Reconstruction:
        with self.generator.autocast():
            result: Reconstruction = self.generator(images)
        return result

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Averaged weights, eval mode, no graph."""
        self.model.eval()
        with self.ema.applied(), torch.no_grad():
            yield

    def _images(self, batch: Batch) -> Tensor:
        """The pictures of a batch on the device, float32 [B, 3, H, W] in [-1, 1], channels last for speed."""
        assert batch.images is not None, "the first stage trains on pictures"
        images = to_model(batch.images.to(self.device, non_blocking=True))
        return images.contiguous(memory_format=torch.channels_last)

    def _in_game(self, step: int) -> bool:
        return self.config.adversarial is not None and step >= self.config.adversarial.start_step


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of `module` takes a gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
