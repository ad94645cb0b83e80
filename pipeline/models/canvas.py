"""Given pictures that sampling starts from, keeps parts of, or makes larger. Used by `pipeline.generate`."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import UserError
from pipeline.diffusion.sampling import AfterStep, unchanged
from pipeline.diffusion.schedule import NoiseSchedule
from pipeline.models.condition import latent_mask


@dataclass(frozen=True)
class Canvas:
    """Pictures with their latents, and where to repaint them."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    latents: Tensor
    """Their normalised latents, float32 [B, C, h, w]."""
    mask: Tensor | None
    """bool [B, 1, H, W]: True where to repaint; None repaints everywhere."""

    def latent_mask(self) -> Tensor | None:
        """bool [B, 1, h, w]: True for each latent pixel that any pixel to repaint falls into."""
        if self.mask is None:
            return None
        return latent_mask(self.mask, self.mask.shape[-1] // self.latents.shape[-1])

    def keeper(self, noise: Tensor, schedule: NoiseSchedule) -> AfterStep:
        """Puts the parts that are not to be repainted back after each step, with `noise` [B, C, h, w] at its level."""
        mask = self.latent_mask()  # [B, 1, h, w]
        if mask is None:
            return unchanged

        def keep(x: Tensor, t: int | None) -> Tensor:
            known = self.latents
            if t is not None:
                known = schedule.add_noise(known, noise, torch.full((len(x),), t))
            return torch.where(mask, x, known)  # [B, C, h, w]

        return keep

    def part(self, rows: slice) -> "Canvas":
        """The canvas of some of the pictures."""
        return Canvas(self.images[rows], self.latents[rows], None if self.mask is None else self.mask[rows])


def outpainted(image: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3] in the middle of a larger one, its edges drawn out, and the mask of what is new.

    Returns:
        uint8 [H + 2 margin, W + 2 margin, 3] and bool [H + 2 margin, W + 2 margin].
    """
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    mask = np.ones((len(image) + 2 * margin, image.shape[1] + 2 * margin), dtype=bool)
    mask[margin : mask.shape[0] - margin, margin : mask.shape[1] - margin] = False
    return wide, mask


def one_for_each(array: np.ndarray, count: int, name: str, ndim: int) -> Tensor:
    """`array` with a leading dimension of `count`; a single picture is repeated.

    Raises:
        UserError: another number of pictures.
    """
    if array.ndim == ndim - 1:
        array = np.repeat(array[None], count, axis=0)
    if array.ndim != ndim or len(array) != count:
        raise UserError(f"{name}: shape {array.shape} does not fit {count} prompts")
    return torch.from_numpy(np.array(array))


def pictures_for_each(array: np.ndarray, count: int, name: str) -> Tensor:
    """uint8 [H, W, 3] or [B, H, W, 3] -> uint8 [count, 3, H, W]."""
    return one_for_each(array, count, name, ndim=4).permute(0, 3, 1, 2)
