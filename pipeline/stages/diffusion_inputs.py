"""What the denoising network is given for a batch: latents, captions, condition, noise and timestep.

Every draw is keyed on (epoch, sample id). Made by the diffusion stage, and by `tessera evaluate`, which measures the
same validation loss on an exported model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.holes import random_holes
from pipeline.data.transforms import to_model
from pipeline.diffusion.objective import Objective
from pipeline.evaluate.denoising import DenoisingMeter
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.condition import InpaintConfig, UpscaleConfig, inpaint_condition, shrunk, upscale_condition
from pipeline.models.text import NULL_PROMPT, TextTower
from pipeline.randomness import Draws, Purpose


class Inputs:
    """The frozen networks and the draws; tensors come on the autoencoder's device.

    Args:
        text: frozen, it encodes here; trainable, it is a part of the model, and captions stay token numbers.
        autoencoder: encodes pictures and holds the scale of the latents.
        condition: what of a batch's own pictures the network may see.
        draws: of the run.
    """

    def __init__(
        self,
        text: TextTower,
        autoencoder: Autoencoder,
        condition: InpaintConfig | UpscaleConfig | None,
        draws: Draws,
    ) -> None:
        self.text, self.autoencoder, self._condition, self.draws = text, autoencoder, condition, draws
        self.device = next(autoencoder.parameters()).device

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """Normalised latents float32 [B, C, h, w]: from the store, or encoded from pictures, by the same statistics."""
        if batch.latents is not None:
            return self.autoencoder.normalise(batch.latents.to(self.device, non_blocking=True))
        # in float32: stored and online latents are then the same numbers
        return self.autoencoder.encode(to_model(self._images(batch))).float()

    @torch.no_grad()
    def captions(self, batch: Batch, dropped: Sequence[bool]) -> Tensor:
        """What the model takes for captions: token numbers for its own text tower, states of a frozen one otherwise."""
        captions = [NULL_PROMPT if drop else caption for caption, drop in zip(batch.captions, dropped, strict=True)]
        if not self.text.frozen:
            return self.text.tokenize(captions).to(self.device, non_blocking=True)  # [B, T]
        if batch.text_states is None:
            return self.text.encode(captions)  # [B, T, D]
        mask = torch.tensor(dropped)[:, None, None].to(self.device, non_blocking=True)  # [B, 1, 1]
        stored = batch.text_states.to(self.device, non_blocking=True)  # [B, up to T, D]
        states = pad(stored, (0, 0, 0, self.text.context_length - stored.shape[1]))  # [B, T, D]
        return torch.where(mask, self.text.encode([NULL_PROMPT]).to(states), states)  # [B, T, D]

    @torch.no_grad()
    def condition(self, batch: Batch, epochs: Sequence[int]) -> Tensor | None:
        """Channels beside the noised latent, float32 [B, K, h, w]; None for a model without condition.

        Raises:
            UserError: the condition is made from pictures, and the batch has none.
        """
        if self._condition is None:
            return None
        if batch.images is None:
            raise UserError(f"stage.condition: {self._condition.kind} needs pictures; data.train holds latents")
        images = self._images(batch)  # [B, 3, H, W]
        if self._condition.kind == "upscale":
            small = shrunk(images, self._condition.factor)  # [B, 3, H / factor, W / factor]
            return upscale_condition(self.autoencoder, small, self._condition.factor).float()
        drawn = random_holes(self.draws, epochs, batch.sample_ids, *images.shape[2:])  # [B, 1, H, W]
        holes = torch.from_numpy(drawn).to(self.device, non_blocking=True)
        return inpaint_condition(self.autoencoder, images, holes).float()

    def network_input(
        self, objective: Objective, batch: Batch, epochs: Sequence[int], clean: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """The noised latent at timesteps `t` [B], with the condition behind it: [B, C + K, h, w]."""
        noised = objective.network_input(objective.schedule.add_noise(clean, noise, t), t)  # [B, C, h, w]
        condition = self.condition(batch, epochs)
        return noised if condition is None else torch.cat([noised, condition], dim=1)

    def noise(self, purpose: Purpose, epochs: Sequence[int], batch: Batch, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 [B, *shape]."""
        return self.draws.normal(purpose, epochs, batch.sample_ids, shape).to(self.device, non_blocking=True)

    def _images(self, batch: Batch) -> Tensor:
        assert batch.images is not None, "a batch has pictures or latents"
        return batch.images.to(self.device, non_blocking=True)  # [B, 3, H, W]


Predict = Callable[[Batch, Sequence[int], Sequence[bool], Tensor, Tensor, Tensor], Tensor]
"""(batch, epochs, dropped captions, clean, noise, t) -> output of the network [B, C, h, w]."""


def validation_losses(batch: Batch, inputs: Inputs, objective: Objective, predict: Predict) -> Tensor:
    """Unweighted squared error of each sample at its timestep of `DenoisingMeter`: float32 [B]."""
    epochs = [0] * len(batch.sample_ids)
    clean = inputs.latents(batch)  # [B, C, h, w]
    noise = inputs.noise(Purpose.VALIDATION_NOISE, epochs, batch, clean.shape[1:])  # [B, C, h, w]
    t = DenoisingMeter.timesteps(batch.sample_ids, objective.schedule.num_timesteps)  # [B]
    output = predict(batch, epochs, [False] * len(clean), clean, noise, t)  # [B, C, h, w]
    return objective.squared_error(output, clean, noise, t)
