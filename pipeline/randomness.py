"""Counter-based randomness: every draw is a function of (seed, purpose, epoch, sample), of nothing else.

Rank, worker, step and batch never enter, so a sample gets the same noise, timestep, crop and caption drop at
any world size, after any resume, and in precomputation. The generator is Philox-4x64 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011); only its raw 64-bit output is used, whose stream numpy keeps
stable, and the transforms to uniform and normal numbers stand here. Called by the stages, the loader and the sampler.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Purpose(StrEnum):
    """What a draw is for: two purposes never share numbers."""

    NOISE = "noise"
    TIMESTEP = "timestep"
    CAPTION_DROP = "caption_drop"
    CAPTION_CHOICE = "caption_choice"
    CROP = "crop"
    FLIP = "flip"
    POSTERIOR = "posterior"
    ORDER = "order"
    INITIAL_NOISE = "initial_noise"
    SAMPLER_NOISE = "sampler_noise"
    VALIDATION_NOISE = "validation_noise"
    CODEBOOK = "codebook"
    DRAWING = "drawing"
    HOLE = "hole"
    OFFSET_NOISE = "offset_noise"


def philox_key(seed: int, purpose: str) -> np.ndarray:
    """The 128-bit Philox key of (seed, purpose): two uint64 words, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Draws:
    """All random numbers of a run; `epochs` and `sample_ids` have one entry for each sample of a batch."""

    seed: int
    """Seed of the run: the only state there is."""

    def bits(self, purpose: Purpose, epochs: Sequence[int], sample_ids: Sequence[int], count: int) -> np.ndarray:
        """Raw uint64 words, [B, count]: row b is the Philox stream of (seed, purpose) at counter (epoch, sample)."""
        key = philox_key(self.seed, purpose)
        counters = np.array([(0, 0, int(e), int(s)) for e, s in zip(epochs, sample_ids, strict=True)], dtype=np.uint64)
        rows = [np.random.Philox(key=key, counter=counter).random_raw(count) for counter in counters]
        return np.stack(rows) if rows else np.empty((0, count), dtype=np.uint64)

    def uniform(self, purpose: Purpose, epochs: Sequence[int], sample_ids: Sequence[int], count: int = 1) -> np.ndarray:
        """float64 in [0, 1), [B, count]: the top 53 bits of each word."""
        return (self.bits(purpose, epochs, sample_ids, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(
        self, purpose: Purpose, epochs: Sequence[int], sample_ids: Sequence[int], shape: Sequence[int]
    ) -> "torch.Tensor":
        """Standard normal float32 on the CPU, [B, *shape], by Box and Muller (1958) in float64."""
        import torch  # here alone: drawing pictures and planning orders need no torch, and start a second sooner

        count = math.prod(shape)
        half = (count + 1) // 2
        u = self.uniform(purpose, epochs, sample_ids, 2 * half)  # [B, 2 * half]
        radius = np.sqrt(-2.0 * np.log1p(-u[:, :half]))  # 1 - u is in (0, 1]: never log(0)
        angle = 2.0 * math.pi * u[:, half:]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
        return torch.from_numpy(values.astype(np.float32)).reshape(len(u), *shape)
