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
from pipeline.diffusion.objective import build_objective
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, any_rank, on_every_rank
from pipeline.evaluate.denoising import DenoisingMeter
from pipeline.generate import Generator
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.latent_diffusion import LatentDiffusionConfig, build_latent_diffusion
from pipeline.optim import OptimConfig, learning_rate_at
from pipeline.randomness import Draws, Purpose
from pipeline.stages.diffusion_inputs import Inputs, validation_losses
from pipeline.stages.diffusion_preview import preview_sheet


class DiffusionStageConfig(LatentDiffusionConfig):
    """The second stage: the model, and how it is trained."""

    kind: Literal["diffusion"] = "diffusion"
    """Chooses this stage."""
    caption_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions replaced by the null prompt, so that the model also learns what guidance leads away from."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of noise that is equal over each channel of a sample, for a freer choice of brightness where
    the schedule does not end in pure noise; 0.1 is usual, zero_terminal_snr does without."""
    ema: EmaConfig = EmaConfig()
    """Average of the weights: what is validated, previewed and exported."""
    preview_prompts: tuple[str, ...] = Field(min_length=1)
    """Prompts of the preview pictures; prompt i always has seed i."""


class DiffusionStage:
    """See `pipeline.trainer.Stage`.

    Args:
        autoencoder: trained first stage: encodes pictures, holds the scale of the latents, decodes previews.
        shifts: of the noise schedule in earlier phases, each with the samples seen at which the next phase begins.

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
        shifts: Sequence[tuple[int, float]] = (),
    ) -> None:
        if config.unet.latent_channels != autoencoder.config.embedding_dim:
            raise UserError(
                f"unet.latent_channels: {config.unet.latent_channels}, but the autoencoder's latents have"
                f" {autoencoder.config.embedding_dim} channels"
            )
        if config.unet.compile_blocks and engine.kind == "deepspeed" and engine.zero_stage == 3:
            raise UserError("unet.compile_blocks: not under engine.zero_stage 3; choose 2, or leave compilation off")
        self.config, self.optim, self.draws, self.process = config, optim, Draws(seed), process
        self.objective = self._last_objective = build_objective(config.objective)
        self._earlier = [(until, build_objective(config.objective.shifted(shift))) for until, shift in shifts]
        self.autoencoder = autoencoder.to(process.device).eval().requires_grad_(False)
        self.model, text = build_latent_diffusion(config, seed)
        self.text = text.to(process.device)
        self.inputs = Inputs(self.text, self.autoencoder, config.condition, self.draws)
        self._latest: Batch | None = None
        self.engine = build_engine(engine, "unet", self.model, optim, process)
        self.ema = Ema(self.engine, config.ema)
        self.tracks = {f"unet_ema_{width}": Ema(self.engine, config.ema, width) for width in config.ema.power_widths}

    def train_step(
        self, batch: Batch, step: int, samples_seen: int, total_samples: int
    ) -> Mapping[str, Tensor | float]:
        """One optimizer step on the rank's part of a global batch."""
        self.model.train()
        self._latest = batch
        self.objective = next((one for until, one in self._earlier if samples_seen < until), self._last_objective)
        clean = self.inputs.latents(batch)  # [B, C, h, w]
        noise = self._noise(batch, clean.shape[1:])  # [B, C, h, w]
        t = self._timesteps(batch)  # [B]
        output = self._predict(batch, batch.epochs, self._dropped(batch), clean, noise, t)  # [B, C, h, w]
        loss = self.objective.loss(output, clean, noise, t).mean()
        self.engine.backward(loss)
        learning_rate = learning_rate_at(self.optim, samples_seen, total_samples)
        gradient_norm = self.engine.step(learning_rate)
        for average in (self.ema, *self.tracks.values()):
            average.update()
        return {"diffusion_loss": loss.detach(), "gradient_norm": gradient_norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """The validation loss of `pipeline.evaluate.denoising` under the averaged weights.

        Every rank evaluates equally often, since sharded weights are gathered in step: one that runs out repeats its
        last batch without counting it.
        """
        meter = DenoisingMeter()
        with self.ema.applied():
            self.model.eval()
            for batch, counts in in_step(batches):
                losses = validation_losses(batch, self.inputs, self.objective, self._predict)  # [B]
                if counts:
                    meter.update(losses, batch.sample_ids)
        return meter.compute()

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Pictures of the fixed prompts under averaged weights, with captions: uint8 [H, W, 3].

        A model that enlarges shows the first pictures of its latest batch instead, the small one beside each.
        """
        with self.ema.applied():
            self.model.eval()
            generator = Generator(
                self.model,
                self.text,
                self.objective,
                self.config.sampling,
                self.autoencoder,
                self.engine.autocast,
                self.config.condition,
            )
            return preview_sheet(generator, self.config.preview_prompts, self._latest)

    @torch.no_grad()
    def where_not_finite(self, batch: Batch) -> str | None:
        """The first sample whose loss is not finite, with its timestep and rank. Collective.

        The step that was not finite has changed no weight, so the loss comes out the same again.
        """
        clean = self.inputs.latents(batch)  # [B, C, h, w]
        noise, t = self._noise(batch, clean.shape[1:]), self._timesteps(batch)
        output = self._predict(batch, batch.epochs, self._dropped(batch), clean, noise, t)  # [B, C, h, w]
        bad = (~self.objective.loss(output, clean, noise, t).isfinite()).nonzero().flatten().tolist()
        rank = self.process.rank
        mine = [
            f"sample {batch.keys[i]} (number {batch.sample_ids[i]}) at t = {int(t[i])} on rank {rank}" for i in bad[:1]
        ]
        found = [place for part in on_every_rank(lambda: mine) for place in part]
        return found[0] if found else None

    def parts(self) -> Mapping[str, Stateful]:
        """The engine and the averages; a frozen text tower and the autoencoder are inputs, not state."""
        return {"unet": self.engine, "unet_ema": self.ema, **self.tracks}

    def _predict(
        self, batch: Batch, epochs: Sequence[int], dropped: Sequence[bool], clean: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """The model's output at x_t of the batch: [B, C, h, w]."""
        noised = self.inputs.network_input(self.objective, batch, epochs, clean, noise, t)  # [B, C + K, h, w]
        with self.engine.autocast():
            return self.engine(noised, t, self.inputs.captions(batch, dropped))  # [B, C, h, w]

    def _timesteps(self, batch: Batch) -> Tensor:
        """int64 [B] on the CPU, as the objective spreads them."""
        uniform = self.draws.uniform(Purpose.TIMESTEP, batch.epochs, batch.sample_ids)[:, 0]
        return self.objective.timesteps(uniform)

    def _noise(self, batch: Batch, shape: Sequence[int]) -> Tensor:
        """Training noise float32 [B, *shape], with its offset where that is asked for."""
        noise = self.inputs.noise(Purpose.NOISE, batch.epochs, batch, shape)  # [B, C, h, w]
        if self.config.offset_noise == 0.0:
            return noise
        offset = self.inputs.noise(Purpose.OFFSET_NOISE, batch.epochs, batch, (shape[0], 1, 1))  # [B, C, 1, 1]
        return noise + self.config.offset_noise * offset  # [B, C, h, w]

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
