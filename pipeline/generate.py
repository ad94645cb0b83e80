"""Pictures from prompts: text tower, sampler, guidance and autoencoder in one object.

Each picture has a seed of its own and its noise depends on nothing else, so it is the same picture in any batch. Also
starts from a given picture (`init_image`: variations, style under a prompt), repaints a part of one (`mask`), and
enlarges one (`low_res`, with a model that learnt it). Made from an exported folder by `Generator.load` (sample,
evaluate), and from the live models by the diffusion stage for its previews.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.package import load_package
from pipeline.config import UserError
from pipeline.data.transforms import to_model, to_uint8
from pipeline.diffusion.guidance import guided_denoiser
from pipeline.diffusion.objective import Objective, build_objective
from pipeline.diffusion.sampling import SAMPLERS, AfterStep, SamplingConfig, unchanged
from pipeline.diffusion.schedule import partial_timesteps, spaced_timesteps
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.canvas import Canvas, one_for_each, pictures_for_each
from pipeline.models.condition import InpaintConfig, UpscaleConfig, inpaint_condition, upscale_condition
from pipeline.models.latent_diffusion import LatentDiffusion
from pipeline.models.packaged import first_stage_of, load_autoencoder, load_latent_diffusion
from pipeline.models.text import NULL_PROMPT, TextTower
from pipeline.randomness import Draws, Purpose


class Generator:
    """Makes pictures with one model.

    Args:
        model: the text-to-latent model, in evaluation mode or not: it is only run under no_grad.
        text: its text tower (the model's own if that is trained with it).
        objective: what the model's output means.
        sampling: defaults of `sample`.
        autoencoder: decodes the latents; its buffers hold their scale.
        autocast: opens the block in which the networks run; none is float32.
        condition: what the model sees of a given picture.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        text: TextTower,
        objective: Objective,
        sampling: SamplingConfig,
        autoencoder: Autoencoder,
        autocast: Callable[[], AbstractContextManager[None]] | None = None,
        condition: InpaintConfig | UpscaleConfig | None = None,
    ) -> None:
        self.model, self.text, self.objective, self.sampling = model, text, objective, sampling
        self.autoencoder = autoencoder
        self.device = next(autoencoder.parameters()).device
        self.condition = condition
        self._autocast = autocast or nullcontext

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        autoencoder: Path | str | None = None,
        precision: str = "fp32",
    ) -> "Generator":
        """Open an exported text-to-latent model.

        Args:
            folder: the exported folder.
            autoencoder: folder of an exported autoencoder to decode with, instead of the one inside `folder`.
            precision: fp32 or bf16, of the matrix products.

        Raises:
            UserError: not such a folder, or an autoencoder that the model was not trained with.
        """
        package = load_package(folder)
        first_stage = first_stage_of(package, autoencoder)
        config, model, text = load_latent_diffusion(package)
        half = precision == "bf16"
        return cls(
            model.to(device).eval().requires_grad_(False),
            text.to(device),
            build_objective(config.objective),
            config.sampling,
            load_autoencoder(first_stage).to(device),
            lambda: torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half),
            config.condition,
        )

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        negative: str = NULL_PROMPT,
        init_image: np.ndarray | None = None,
        strength: float = 1.0,
        mask: np.ndarray | None = None,
        low_res: np.ndarray | None = None,
        image_size: int | None = None,
        batch_size: int = 16,
    ) -> np.ndarray:
        """One picture for each prompt: uint8 [B, H, W, 3].

        Args:
            seeds: one for each prompt; prompt, seed and settings alone determine a picture's noise. sampling:
            sampler, steps and guidance; the default is what the model carries. negative: what guidance leads away
            from, instead of the empty prompt. init_image: uint8 [H, W, 3] to start from, or [B, H, W, 3] with one for
            each prompt. strength: how much of the way back to noise `init_image` goes, in (0, 1]; 1 forgets it. mask:
            bool [H, W] or [B, H, W], True where to repaint `init_image`; other pixels are returned unchanged.
            low_res: uint8 [H, W, 3] or [B, H, W, 3] to enlarge; for a model with the condition `upscale`, which needs
            it. image_size: side of the pictures in pixels; the default is that of `sampling`. batch_size: pictures in
            memory at once; the result does not depend on it.

        Raises:
            UserError: seeds or pictures that do not match the prompts, a mask without picture, an impossible size, a
                picture to enlarge without a model for it or the other way round.
        """
        sampling = sampling or self.sampling
        if len(seeds) != len(prompts):
            raise UserError(f"seeds: {len(seeds)} seeds for {len(prompts)} prompts; give one for each")
        if mask is not None and init_image is None:
            raise UserError("mask: there is no init_image to repaint a part of")
        small = self._small(low_res, len(prompts))
        size = image_size or sampling.image_size or self.autoencoder.config.resolution
        canvas = None if init_image is None else self._canvas(init_image, mask, len(prompts))
        shape = self._latent_shape(size, size) if canvas is None else tuple(canvas.latents.shape[1:])
        if small is not None and self.condition is not None and self.condition.kind == "upscale":
            shape = self._latent_shape(*(side * self.condition.factor for side in small.shape[2:]))
        pictures = []
        for begin in range(0, len(prompts), batch_size):
            rows = slice(begin, begin + batch_size)
            part = None if canvas is None else canvas.part(rows)
            seen = self._condition(part, None if small is None else small[rows], len(prompts[rows]), shape)
            latents = self._sample_latents(prompts[rows], seeds[rows], sampling, negative, part, strength, shape, seen)
            decoded = to_uint8(self._decode(latents))  # [b, 3, H, W]
            if part is not None and part.mask is not None:
                decoded = torch.where(part.mask, decoded, part.images)  # [b, 3, H, W]
            pictures.append(decoded.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(pictures)

    def _sample_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        negative: str,
        canvas: Canvas | None,
        strength: float,
        shape: Sequence[int],
        condition: Tensor | None = None,
    ) -> Tensor:
        """Normalised latents [B, C, h, w] of a few prompts."""
        schedule = self.objective.schedule
        timesteps = spaced_timesteps(sampling.num_steps, sampling.spacing, schedule.num_timesteps)
        noise = self._noise(Purpose.INITIAL_NOISE, seeds, 0, shape)  # [B, C, h, w]
        after_step: AfterStep = unchanged
        x = noise * schedule.spread(timesteps[0])  # [B, C, h, w]
        if canvas is not None and (self.condition is None or strength < 1.0):
            timesteps = partial_timesteps(timesteps, strength)
            x = schedule.add_noise(canvas.latents, noise, torch.full((len(x),), timesteps[0]))  # [B, C, h, w]
            if self.condition is None:  # a model that learnt to inpaint fits its own to the rest, which it sees
                after_step = canvas.keeper(noise, schedule)
        states = self._encode([*prompts, negative])  # [B + 1, T, D]
        denoiser = guided_denoiser(
            partial(self._predict, condition),
            self.objective,
            states[:-1],
            states[-1:].expand(len(x), -1, -1),
            sampling.guidance_scale,
            sampling.guidance_rescale,
            sampling.guidance_interval,
        )
        sampler = SAMPLERS[sampling.sampler]
        return sampler(
            denoiser,
            x,
            schedule,
            timesteps,
            lambda index: self._noise(Purpose.SAMPLER_NOISE, seeds, index, shape),
            after_step,
        )

    def _noise(self, purpose: Purpose, seeds: Sequence[int], index: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [B, *shape]: row b is a function of (seed b, purpose, index) alone."""
        rows = [Draws(seed).normal(purpose, [0], [index], shape) for seed in seeds]  # [1, *shape] each
        return torch.cat(rows).to(self.device, non_blocking=True)

    def _predict(self, condition: Tensor | None, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        if condition is not None:  # twice under guidance
            x = torch.cat([x, condition.repeat(len(x) // len(condition), 1, 1, 1)], dim=1)  # [B, C + K, h, w]
        with self._autocast():
            return self.model(x, t, states)  # [B, C, h, w]

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        with self._autocast():
            return self.text.encode(prompts)  # [B, T, D]

    def _decode(self, latents: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.decode(latents)  # [B, 3, H, W]

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[C, h, w] of the latents of pictures of that size."""
        factor = self.autoencoder.downsample_factor
        multiple = factor * 2 ** (len(self.model.unet.config.channel_multipliers) - 1)
        for side in (height, width):
            if side % multiple:
                raise UserError(f"image_size: {side} is no multiple of {multiple}, which this model needs")
        return self.autoencoder.config.embedding_dim, height // factor, width // factor

    def _canvas(self, init_image: np.ndarray, mask: np.ndarray | None, count: int) -> Canvas:
        """The given pictures, `count` of them, encoded."""
        images = pictures_for_each(init_image, count, "init_image").to(self.device)  # [B, 3, H, W]
        self._latent_shape(*images.shape[2:])
        pixels = None
        if mask is not None:
            pixels = one_for_each(mask, count, "mask", ndim=3).bool()[:, None].to(self.device)
            if pixels.shape[2:] != images.shape[2:]:
                raise UserError(f"mask: size {tuple(mask.shape)} is not that of the picture, {init_image.shape}")
        with self._autocast():
            latents = self.autoencoder.encode(to_model(images)).float()  # [B, C, h, w]
        return Canvas(images, latents, pixels)

    def _small(self, low_res: np.ndarray | None, count: int) -> Tensor | None:
        """The pictures to enlarge, uint8 [count, 3, H, W], where the model wants some."""
        enlarges = self.condition is not None and self.condition.kind == "upscale"
        if enlarges != (low_res is not None):
            raise UserError(
                "low_res: this model enlarges pictures; give it one"
                if enlarges
                else "low_res: this model has not learnt to enlarge; take one trained with stage.condition upscale"
            )
        return None if low_res is None else pictures_for_each(low_res, count, "low_res").to(self.device)

    def _condition(
        self, canvas: Canvas | None, small: Tensor | None, count: int, shape: Sequence[int]
    ) -> Tensor | None:
        """Channels beside the noised latent [B, K, h, w]; an inpainting model without picture knows nothing of it."""
        if self.condition is None:
            return None
        with self._autocast():
            if self.condition.kind == "upscale":
                assert small is not None
                return upscale_condition(self.autoencoder, small, self.condition.factor).float()
            factor = self.autoencoder.downsample_factor
            size = (count, 3, shape[1] * factor, shape[2] * factor)
            images = torch.zeros(size, dtype=torch.uint8, device=self.device) if canvas is None else canvas.images
            whole = torch.ones_like(images[:, :1], dtype=torch.bool)  # [B, 1, H, W]
            mask = whole if canvas is None or canvas.mask is None else canvas.mask
            return inpaint_condition(self.autoencoder, images, mask).float()
