"""The second stage: a text-conditioned UNet learns to undo noise on the latents of a frozen autoencoder.

One engine, "unet", trains `LatentDiffusion` (with the text tower inside when that is trainable) and one sharded average
follows it. Noise, timestep and caption drop of a sample are draws keyed on (epoch, sample id), so a run is the same at
any world size. Built by `pipeline.experiment`, driven by `pipeline.trainer`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model
from pipeline.diffusion.objective import build_objective
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, all_reduce_sum, any_rank
from pipeline.evaluate.grid import captioned_grid
from pipeline.generate import Generator
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.latent_diffusion import LatentDiffusionConfig, build_latent_diffusion
from pipeline.models.text import NULL_PROMPT
from pipeline.optim import OptimConfig, learning_rate_at
from pipeline.randomness import Draws, Purpose

NUM_STRATA = 8
"""Fixed timesteps of the validation loss, at (i + 1/2) / 8 of the schedule, as in MLPerf Training's text to image."""


class DiffusionStageConfig(LatentDiffusionConfig):
    """The second stage: the model, and how it is trained."""

    kind: Literal["diffusion"] = "diffusion"
    """Chooses this stage."""
    caption_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions replaced by the null prompt, so that the model also learns what guidance leads away from."""
    ema: EmaConfig = EmaConfig()
    """Average of the weights: what is validated, previewed and exported."""
    preview_prompts: tuple[str, ...] = Field(min_length=1)
    """Prompts of the preview pictures; prompt i always has seed i."""


class DiffusionStage:
    """See `pipeline.trainer.Stage`.

    Args:
        autoencoder: trained first stage: encodes pictures, holds the scale of the latents, decodes previews.

    Raises:
        UserError: latent channels of UNet and autoencoder differ, or a setting that its own builder refuses.
    """

    def __init__(
        self,
        config: DiffusionStageConfig,
        engine: EngineConfig,
        optim: OptimConfig,
        process: Process,
        seed: int,
        autoencoder: Autoencoder,
    ) -> None:
        if config.unet.latent_channels != autoencoder.config.embedding_dim:
            raise UserError(
                f"unet.latent_channels: {config.unet.latent_channels}, but the autoencoder's latents have"
                f" {autoencoder.config.embedding_dim} channels"
            )
        self.config, self.optim, self.draws = config, optim, Draws(seed)
        self.objective = build_objective(config.objective)
        self.autoencoder = autoencoder.to(process.device).eval().requires_grad_(False)
        self.model, text = build_latent_diffusion(config, seed)
        self.text = text.to(process.device)
        self.engine = build_engine(engine, "unet", self.model, optim, process)
        self.ema = Ema(self.engine, config.ema)

    def train_step(
        self, batch: Batch, step: int, samples_seen: int, total_samples: int
    ) -> Mapping[str, Tensor | float]:
        """One optimizer step on the rank's part of a global batch."""
        self.model.train()
        clean = self._latents(batch)  # [B, C, h, w]
        noise = self._noise(Purpose.NOISE, batch.epochs, batch.sample_ids, clean)  # [B, C, h, w]
        t = self._timesteps(batch)  # [B]
        output = self._predict(batch, self._dropped(batch), clean, noise, t)  # [B, C, h, w]
        loss = self.objective.loss(output, clean, noise, t).mean()
        self.engine.backward(loss)
        learning_rate = learning_rate_at(self.optim, samples_seen, total_samples)
        gradient_norm = self.engine.step(learning_rate)
        self.ema.update()
        return {"diffusion_loss": loss.detach(), "gradient_norm": gradient_norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Unweighted squared error of the averaged weights at 8 fixed timesteps, with fixed noise for each sample.

        A sample belongs to one of the timesteps by its number, so the pass costs one evaluation for each sample. Every
        rank evaluates equally often, since sharded weights are gathered in step: one that runs out repeats its last
        batch without counting it.
        """
        sums = torch.zeros(2, NUM_STRATA, dtype=torch.float64, device=self.engine.device)  # losses, counts
        with self.ema.applied():
            self.model.eval()
            for batch, counts in in_step(batches):
                stratum = torch.tensor(batch.sample_ids, device=self.engine.device) % NUM_STRATA  # [B]
                losses = self._validation_losses(batch, stratum).double()  # [B]
                if counts:
                    sums[0].index_add_(0, stratum, losses)
                    sums[1].index_add_(0, stratum, torch.ones_like(losses))
        losses, counts = all_reduce_sum(sums.cpu())
        means = losses / counts.clamp(min=1)
        seen = counts > 0
        metrics = {f"validation_loss_at_{i}": float(means[i]) for i in range(NUM_STRATA) if seen[i]}
        return {"validation_loss": float(means[seen].mean()), **metrics} if seen.any() else {}

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Pictures of the fixed prompts under averaged weights, with captions: uint8 [H, W, 3]."""
        prompts = self.config.preview_prompts
        with self.ema.applied():
            self.model.eval()
            generator = Generator(
                self.model, self.text, self.objective, self.config.sampling, self.autoencoder, self.engine.autocast
            )
            return captioned_grid(generator.sample(prompts, seeds=range(len(prompts))), prompts)

    def parts(self) -> Mapping[str, Stateful]:
        """The engine and the average; a frozen text tower and the autoencoder are inputs, not state."""
        return {"unet": self.engine, "unet_ema": self.ema}

    def _predict(self, batch: Batch, dropped: Sequence[bool], clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The model's output at x_t of the batch: [B, C, h, w]."""
        noised = self.objective.schedule.add_noise(clean, noise, t)  # [B, C, h, w]
        with self.engine.autocast():
            return self.engine(noised, t, self._captions(batch, dropped))  # [B, C, h, w]

    def _validation_losses(self, batch: Batch, stratum: Tensor) -> Tensor:
        """Squared error of each sample at the timestep of its stratum [B]: float32 [B]."""
        clean = self._latents(batch)  # [B, C, h, w]
        noise = self._noise(Purpose.VALIDATION_NOISE, [0] * len(clean), batch.sample_ids, clean)  # [B, C, h, w]
        t = (2 * stratum + 1) * self.objective.schedule.num_timesteps // (2 * NUM_STRATA)  # [B]
        output = self._predict(batch, [False] * len(clean), clean, noise, t)  # [B, C, h, w]
        return self.objective.squared_error(output, clean, noise, t)

    def _latents(self, batch: Batch) -> Tensor:
        """Normalised latents float32 [B, C, h, w]: from the store, or encoded from pictures, by the same statistics."""
        if batch.latents is not None:
            return self.autoencoder.normalise(batch.latents.to(self.engine.device))
        assert batch.images is not None, "a batch has pictures or latents"
        with torch.no_grad():  # in float32: stored and online latents are then the same numbers
            return self.autoencoder.encode(to_model(batch.images.to(self.engine.device))).float()

    def _captions(self, batch: Batch, dropped: Sequence[bool]) -> Tensor:
        """What the model takes for captions: token numbers for its own text tower, states of a frozen one otherwise."""
        captions = [NULL_PROMPT if drop else caption for caption, drop in zip(batch.captions, dropped, strict=True)]
        if not self.text.frozen:
            return self.text.tokenize(captions).to(self.engine.device)  # [B, T]
        if batch.text_states is None:
            return self.text.encode(captions)  # [B, T, D]
        mask = torch.tensor(dropped, device=self.engine.device)[:, None, None]  # [B, 1, 1]
        states = batch.text_states.to(self.engine.device)  # [B, T, D]
        return torch.where(mask, self.text.encode([NULL_PROMPT]).to(states), states)  # [B, T, D]

    def _noise(self, purpose: Purpose, epochs: Sequence[int], sample_ids: Sequence[int], like: Tensor) -> Tensor:
        return self.draws.normal(purpose, epochs, sample_ids, like.shape[1:]).to(like.device)

    def _timesteps(self, batch: Batch) -> Tensor:
        """Uniform over the schedule: int64 [B]."""
        uniform = self.draws.uniform(Purpose.TIMESTEP, batch.epochs, batch.sample_ids)[:, 0]
        timesteps = (uniform * self.objective.schedule.num_timesteps).astype(np.int64)
        return torch.from_numpy(timesteps).to(self.engine.device)

    def _dropped(self, batch: Batch) -> list[bool]:
        """Which captions this step replaces by the null prompt."""
        uniform = self.draws.uniform(Purpose.CAPTION_DROP, batch.epochs, batch.sample_ids)[:, 0]
        return [bool(u < self.config.caption_drop) for u in uniform]


def in_step(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The rank's batches, then its last one again (with False) until every rank has come to its end.

    Raises:
        UserError: this rank has no batch at all while others have some.
    """
    iterator, last = iter(batches), None
    while any_rank((batch := next(iterator, None)) is not None):
        last, counts = batch or last, batch is not None
        if last is None:
            raise UserError("validation data: fewer samples than ranks; give each rank at least one")
        yield last, counts
