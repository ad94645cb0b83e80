"""First stage: trains the autoencoder, alone or against a discriminator, under any engine and ZeRO stage.

The generator is trained by the leaf method: the gradients of all picture losses are taken at a detached
reconstruction, the adaptive weight is computed from them, and exactly one engine backward carries their sum through
the network (one pass, where the usual way takes three, and no autograd pass meets a partitioned weight).
Implements the trainer's `Stage`; built by `pipeline.experiment`.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model, to_uint8
from pipeline.distributed.ema import Ema
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, all_reduce_mean, all_reduce_sum
from pipeline.evaluate.grid import one_above_another
from pipeline.evaluate.reconstruction import CodebookMeter, LatentMeter, PictureMeter
from pipeline.losses.adversarial import adaptive_weight
from pipeline.losses.reconstruction import ReconstructionLoss
from pipeline.models.autoencoder import Autoencoder, Reconstruction
from pipeline.models.finite import first_not_finite
from pipeline.optim import OptimConfig, learning_rate_at
from pipeline.randomness import Draws, Purpose
from pipeline.stages.autoencoder.collapse import COLLAPSED_SHARE, REMEDY, CollapseAlarm
from pipeline.stages.autoencoder.config import AutoencoderStageConfig
from pipeline.stages.autoencoder.game import Game, Metrics

NUM_SHOWN = 8
"""Pictures of a preview."""

log = logging.getLogger(__name__)


class AutoencoderStage:
    """The autoencoder, its discriminator, their engines and the average of the weights."""

    def __init__(
        self, config: AutoencoderStageConfig, engine: EngineConfig, optim: OptimConfig, process: Process, seed: int
    ) -> None:
        self.config, self.optim, self.device = config, optim, process.device
        self.draws = Draws(seed)
        self.model = Autoencoder(config.model, seed)
        self.model.checkpointing(config.gradient_checkpointing)
        if config.compile_levels:
            _check_compiles(engine)
            self.model.compile_levels()
        self.last_conv = self.model.decoder.conv_out
        self.reconstruction = ReconstructionLoss(config.reconstruction).to(process.device)
        self.generator = build_engine(engine, "autoencoder", self.model, optim, process)
        self.ema = Ema(self.generator, config.ema)
        self.game = Game(config.adversarial, engine, process, seed) if config.adversarial else None
        self.alarm = CollapseAlarm()
        self.shown: Tensor | None = None

    def parts(self) -> dict[str, Stateful]:
        """The engines by name, and `ema`."""
        parts: dict[str, Stateful] = {"autoencoder": self.generator, "ema": self.ema}
        return parts | ({"discriminator": self.game.engine} if self.game else {})

    def train_step(self, batch: Batch, step: int, samples_seen: int, total_samples: int) -> Metrics:
        """The generator's turn and, once the game has begun, the discriminator's on the same pictures."""
        images = self._images(batch)
        self.shown = images[:NUM_SHOWN]
        self.model.train()
        rate = learning_rate_at(self.optim, samples_seen, total_samples)
        restored, metrics = self.generator_turn(images, step, rate, self._noise(batch))
        if self._in_game(step):
            assert self.game is not None
            rate = learning_rate_at(self.game.config.optim, samples_seen, total_samples)
            metrics |= self.game.turn(images, restored, step, rate)
        return metrics

    def generator_turn(
        self, images: Tensor, step: int, rate: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """One step of the autoencoder, its average and its codebook; the reconstructions, detached, and the metrics."""
        with self.generator.autocast():
            result: Reconstruction = self.generator(images, noise)
        direction, metrics = self._picture_gradient(images, result, step)
        # The gradient of this product at the picture is `direction`, that of all picture losses together.
        surrogate = (result.images * direction).sum()
        own_losses = [surrogate, *result.quantized.losses.values()]
        self.generator.backward(torch.stack(own_losses).sum())
        metrics["gradient_norm"] = self.generator.step(rate)
        self.ema.update()
        self.model.quantize.update(result.latent.detach(), result.quantized.codes, step)
        metrics |= {name: loss.detach() for name, loss in result.quantized.losses.items()}
        if self.model.quantize.num_codes and self.model.quantize.in_use(step):
            metrics |= self.alarm.look(all_reduce_sum(result.quantized.usage), step)
        metrics["learning_rate"] = rate
        return result.images.detach(), metrics

    def _picture_gradient(self, images: Tensor, result: Reconstruction, step: int) -> tuple[Tensor, Metrics]:
        """Gradient of all picture losses at the reconstruction [B, 3, H, W], and the losses by name."""
        leaf = result.images.detach().requires_grad_()
        with self.generator.autocast():
            terms = self.reconstruction(leaf, images)
        (direction,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), leaf)
        metrics: Metrics = {name: term.detach() for name, term in terms.items()}
        if self._in_game(step):
            assert self.game is not None
            loss, by_game = self.game.gradient_at(leaf)
            weight = adaptive_weight(result.last_hidden, self.last_conv, direction, by_game, all_reduce_mean)
            scale = self.game.config.weight * weight
            direction = direction + scale * by_game
            metrics |= {"generator_loss": scale * loss, "adaptive_weight": weight}
        return direction, metrics

    def where_not_finite(self, batch: Batch) -> str | None:
        """The first layer whose output on `batch` is not finite, by name. Collective."""
        images = self._images(batch)
        engines = [self.generator, *([self.game.engine] if self.game else [])]
        for engine in engines:
            with torch.no_grad(), engine.autocast(), torch.compiler.set_stance("force_eager"):  # hooks are not compiled
                layer = first_not_finite(engine.module, images)
            if layer is not None:
                return f"{engine.name}.{layer}".removesuffix(".")
        return None

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
        if values.get("codebook_usage", 1.0) < COLLAPSED_SHARE:
            share = 100 * values["codebook_usage"]
            log.warning("the codebook has collapsed: %.1f %% of the codes in use; %s", share, REMEDY)
        return {f"validation_{name}": value for name, value in values.items()}

    def preview(self) -> np.ndarray:
        """Pictures of the last batch of rank 0 above their reconstructions, uint8 [2 H, n W, 3]. Collective."""
        assert self.shown is not None, "a preview shows pictures of a training step"
        with self._averaged():
            restored = self._restore(self.shown).images
        return one_above_another(to_uint8(self.shown), to_uint8(restored))

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

    def _noise(self, batch: Batch) -> Tensor | None:
        """The posterior's draws of a KL bottleneck [B, d, h, w], by sample and epoch; None for codes."""
        if self.config.model.quantizer.kind != "kl":
            return None
        assert batch.images is not None
        factor = self.config.model.downsample_factor
        shape = (self.config.model.embedding_dim, *(side // factor for side in batch.images.shape[2:]))
        noise = self.draws.normal(Purpose.POSTERIOR, batch.epochs, batch.sample_ids, shape)  # [B, d, h, w]
        return noise.to(self.device, non_blocking=True)

    def _in_game(self, step: int) -> bool:
        return self.game is not None and step >= self.game.config.start_step


def _check_compiles(engine: EngineConfig) -> None:
    """A compiled block does not see that ZeRO 3 has taken its weights away."""
    if engine.kind == "deepspeed" and engine.zero_stage == 3:
        raise UserError("stage.compile_levels with engine.zero_stage 3: use stage 2, or compile_levels: false")
